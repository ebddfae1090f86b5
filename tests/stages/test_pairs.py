"""rows of judged answers: every form that people have reads alike, and no wrong row is learned"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.data.catalog import Reading, check_readable, load_catalog
from luthier.data.check import RowError, RowProblem
from luthier.data.encode import LeftOut
from luthier.data.pipeline import load_datasets
from luthier.data.report import Counts
from luthier.data.road import Encoding
from luthier.errors import DataError
from luthier.example import Example
from luthier.records import Conversation, Feedback, Message, Origin, Pair
from luthier.stages.marked import FROM_PAIRS, Marked
from luthier.stages.pairs import UNUSED_MARGIN, Pairs
from luthier.stages.rm import RewardModeling
from luthier.templates.template import TEMPLATES
from luthier.training.preflight import find_problems
from tests import tiny
from tests.stages.made import make_arguments, make_stage

ROLES = ("system", "user", "assistant", "observation")

HERE = Origin("rows.json", 7)


def describe(rows: list[Any], stage: Any, **entry: Any) -> Reading:
    """How rows are read, of dataset_info.json where it says something, else as the rows tell."""
    catalog = load_catalog({"set": {"file_name": "x", **entry}})
    description = catalog.describe("set")
    if not entry:
        description = replace(description, formatting=None)
        description, line = stage.detect(description, rows)
        assert "detected" in line
    return stage.reading(description)


def read(row: dict[str, Any], kind: Any = Pairs, **entry: Any) -> Any:
    stage = kind(make_arguments("sft"))
    return stage.read(row, describe([row], stage, **entry), HERE)


ASK = {"role": "user", "content": "Name a wood."}
GOOD = {"role": "assistant", "content": "Spruce."}
BAD = {"role": "assistant", "content": "Stone."}
ASK_SHAREGPT = {"from": "human", "value": "Name a wood."}
GOOD_SHAREGPT, BAD_SHAREGPT = ({"from": "gpt", "value": text} for text in ("Spruce.", "Stone."))
RANKING: dict[str, Any] = {"ranking": True}
SHAREGPT = RANKING | {"formatting": "sharegpt"}

FORMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"instruction": "Name a wood.", "input": "", "chosen": "Spruce.", "rejected": "Stone."},
        RANKING | {"columns": {"prompt": "instruction", "query": "input", "chosen": "chosen"}},
    ),
    (
        {"q": "Name a wood.", "better": "Spruce.", "worse": "Stone."},
        RANKING | {"columns": {"prompt": "q", "chosen": "better", "rejected": "worse"}},
    ),
    (
        {"conversations": [ASK_SHAREGPT], "chosen": GOOD_SHAREGPT, "rejected": BAD_SHAREGPT},
        SHAREGPT,
    ),
    ({"messages": [ASK], "chosen": [GOOD], "rejected": [BAD]}, {}),
    ({"messages": [ASK], "chosen": GOOD, "rejected": BAD}, RANKING | {"formatting": "openai"}),
    ({"conversations": [ASK_SHAREGPT], "chosen": GOOD_SHAREGPT, "rejected": BAD_SHAREGPT}, {}),
    ({"prompt": "Name a wood.", "chosen": "Spruce.", "rejected": "Stone."}, {}),
    ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, {}),
    ({"prompt": "Name a wood.", "chosen": [GOOD], "rejected": [BAD]}, {}),
    ({"prompt": "Name a wood.", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, {}),
    ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, {}),
]


@pytest.mark.parametrize(("row", "entry"), FORMS)
def test_every_form_of_a_pair_reads_alike(row: dict[str, Any], entry: dict[str, Any]):
    pair = read(row, **entry)

    assert pair.prompt.messages == (Message("user", "Name a wood."),)
    assert (pair.chosen.content, pair.rejected.content) == ("Spruce.", "Stone.")
    assert pair.origin == HERE


@pytest.mark.parametrize(
    ("row", "entry"),
    [
        (
            {"instruction": "Name a wood.", "output": "Spruce.", "liked": True},
            {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "liked"}},
        ),
        (
            {"conversations": [ASK_SHAREGPT, GOOD_SHAREGPT], "kto_tag": True},
            {"formatting": "sharegpt", "columns": {"kto_tag": "kto_tag"}},
        ),
        ({"messages": [ASK, GOOD], "label": True}, {}),
        ({"prompt": "Name a wood.", "completion": "Spruce.", "label": True}, {}),
        ({"prompt": [ASK], "completion": [GOOD], "label": True}, {}),
    ],
)
def test_every_form_of_a_marked_answer_reads_alike(row: dict[str, Any], entry: dict[str, Any]):
    feedback = read(row, Marked, **entry)

    asked, answer = feedback.conversation.messages
    assert (asked.content, answer.content) == ("Name a wood.", "Spruce.")
    assert feedback.is_desirable is True


def test_system_tools_history_and_margin_are_read():
    tools = json.dumps([{"name": "find", "parameters": {"type": "object", "properties": {}}}])
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, ASK, GOOD, ASK],
        "chosen": [GOOD],
        "rejected": [BAD],
        "tools": tools,
        "margin": 2,
    }

    pair = read(row)

    assert pair.prompt.system == "Be brief."
    assert len(pair.prompt.messages) == 3
    assert json.loads(pair.prompt.tools)[0]["name"] == "find"
    assert pair.margin == 2.0


PAIR = {"prompt": "Name a wood.", "chosen": "Spruce.", "rejected": "Stone."}
LISTS = {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}
WHOLE = {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}


@pytest.mark.parametrize(
    ("good", "change", "field", "said"),
    [
        (PAIR, {"chosen": None}, "chosen", "null"),
        (PAIR, {"rejected": ""}, "rejected", "empty"),
        (PAIR, {"rejected": "  \n"}, "rejected", "empty"),
        (PAIR, {"chosen": 7}, "chosen", "a number where a text belongs"),
        (PAIR, {"chosen": ["Spruce."]}, "chosen", "a list where a text belongs"),
        (PAIR, {"rejected": "Spruce."}, "rejected", "the same as chosen"),
        (PAIR, {"prompt": ""}, "prompt", "empty"),
        (LISTS, {"chosen": []}, "prompt", "no answer at the end"),
        (LISTS, {"chosen": [[GOOD]]}, "chosen[0]", "a list where an object belongs"),
        (LISTS, {"chosen": 7}, "chosen", "a number where an object belongs"),
        (LISTS, {"chosen": [ASK]}, "chosen[0]", "role user out of order"),
        (LISTS, {"chosen": [{"role": "judge", "content": "x"}]}, "chosen[0].role", "unknown role"),
        (LISTS, {"chosen": [{"role": "assistant", "content": ""}]}, "chosen[0].content", "empty"),
        (LISTS, {"prompt": [ASK, GOOD]}, "chosen[0]", "role assistant out of order"),
        (WHOLE, {"rejected": [{**ASK, "content": "Other?"}, BAD]}, "rejected", "nothing in common"),
        (WHOLE, {"rejected": [ASK, GOOD, ASK, BAD]}, "rejected", "the beginning of the other"),
        (
            {"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, BAD, ASK, GOOD]},
            {"rejected": [ASK, BAD, {**ASK, "content": "And?"}, GOOD]},
            "rejected",
            "in more than the last answer",
        ),
        (
            WHOLE,
            {"rejected": [{"role": "system", "content": "Be rude."}, ASK, BAD]},
            "rejected",
            "another system text",
        ),
        ({**PAIR, "margin": 1.0}, {"margin": "much"}, "margin", "text where a number belongs"),
        ({**PAIR, "margin": 1.0}, {"margin": float("nan")}, "margin", "where a number belongs"),
    ],
)
def test_a_wrong_pair_is_named_by_its_field(
    good: dict[str, Any], change: dict[str, Any], field: str, said: str
):
    stage = Pairs(make_arguments("sft"))
    reading = describe([good], stage)

    with pytest.raises(RowError) as found:
        stage.read(good | change, reading, HERE)

    assert found.value.field == field
    assert said in str(found.value)


@pytest.mark.parametrize("mark", ["false", "true", 1, 0, None, 0.5])
def test_a_mark_is_true_or_false(mark: Any):
    stage = Marked(make_arguments("sft"))
    row = {"prompt": "Name a wood.", "completion": "Spruce.", "label": True}
    reading = describe([row], stage)

    with pytest.raises(RowError, match=r"label: .*(true or false|null)"):
        stage.read(row | {"label": mark}, reading, HERE)


@pytest.mark.parametrize(
    ("kind", "entry", "said"),
    [
        ("sft", RANKING, "Use stage: dpo or rm"),
        ("sft", {"columns": {"kto_tag": "label"}}, "Use stage: kto"),
        (Pairs, {"columns": {"kto_tag": "label"}}, "Use stage: kto"),
        (Pairs, {"formatting": "sharegpt"}, '"ranking": true'),
        (Marked, {"formatting": "alpaca"}, '"kto_tag"'),
    ],
)
def test_a_set_of_another_stage_is_refused_with_what_to_do(kind: Any, entry: Any, said: str):
    record = Conversation if kind == "sft" else kind.record
    description = load_catalog({"set": {"file_name": "x", **entry}}).describe("set")

    with pytest.raises(DataError, match=said):
        check_readable(description, record)


@pytest.mark.parametrize(
    "rows", [[{"prompt": "a", "completion": "b"}], [{"instruction": "a", "output": "b"}], [1]]
)
@pytest.mark.parametrize("kind", [Pairs, Marked])
def test_rows_that_are_not_judged_are_refused_with_their_columns(kind: Any, rows: list[Any]):
    with pytest.raises(DataError, match="Columns here"):
        describe(rows, kind(make_arguments("sft")))


def fitted(kind: Any, template: str = "chatml", **settings: Any) -> Any:
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_tokens(
        ["[gMASK]", "<sep>", "sop", *(f"<|{each}|>" for each in ROLES)], special_tokens=True
    )
    stage = kind(make_arguments("sft", **settings))
    stage.fit(tokenizer, TEMPLATES.get(template))
    return stage


PROMPT = Conversation((Message("user", "Who are you?"),), system="Be brief.")
TOLD = Pair(
    PROMPT, Message("assistant", "A luthier."), Message("assistant", "Nobody at all."), HERE
)


def sft_example(stage: Any, answer: Message) -> Example:
    conversation = Conversation((*PROMPT.messages, answer), PROMPT.system)
    ((example,),) = make_fitted_sft(stage).examples([conversation])
    return example


def make_fitted_sft(stage: Any) -> Any:
    sft = make_stage("sft", mask_history=True)
    sft.fit(stage.tokenizer, stage.template)
    return sft


@pytest.mark.parametrize("template", sorted(TEMPLATES.names()))
def test_an_answer_of_a_pair_is_learned_as_in_sft(template: str):
    stage = fitted(Pairs, template)

    ((example,),) = stage.examples([TOLD])

    assert example.num_units == 1
    for part, answer in zip(example.each_sequence(), (TOLD.chosen, TOLD.rejected), strict=True):
        alone = sft_example(stage, answer)
        assert list(part.input_ids) == list(alone.input_ids)
        assert list(part.labels) == list(alone.labels)


def test_a_pair_that_is_too_long_keeps_one_prompt_and_cuts_both_answers_alike():
    long = Pair(
        Conversation((Message("user", "tell me how glue is made " * 4),)),
        Message("assistant", "First warm the hide glue gently. " * 6),
        Message("assistant", "Then brush it."),
        HERE,
    )
    uncut = fitted(Pairs).examples([long])[0][0]

    ((example,),) = fitted(Pairs, cutoff_len=60).examples([long])

    chosen, rejected = example.each_sequence()
    assert max(example.lengths) == 60
    learned = [[label for label in part.labels if label >= 0] for part in (chosen, rejected)]
    prompts = [
        part.input_ids[: len(part.input_ids) - len(labels)].tolist()
        for part, labels in zip((chosen, rejected), learned, strict=True)
    ]
    assert prompts[0] == prompts[1]
    assert len(learned[0]) == 60 - len(prompts[0])
    assert example.num_cut == sum(uncut.lengths) - sum(example.lengths)


@pytest.mark.parametrize("on_overlong", ["drop", "error"])
def test_a_pair_that_is_too_long_is_left_out_where_that_is_asked(on_overlong: str):
    outcome = fitted(Pairs, cutoff_len=20, on_overlong=on_overlong).examples([TOLD])[0]

    assert isinstance(outcome, LeftOut)


def test_answers_that_are_equal_once_cut_are_a_bad_row():
    same = "First warm the hide glue gently, then brush it on the joint. " * 8
    pair = Pair(
        PROMPT, Message("assistant", f"{same}Good."), Message("assistant", f"{same}Bad."), HERE
    )

    outcome = fitted(Pairs, cutoff_len=64).examples([pair])[0]

    assert isinstance(outcome, RowProblem)
    assert "equal once they are cut" in outcome.reason


def test_no_room_for_a_token_of_the_answer_leaves_the_pair_out():
    outcome = fitted(Pairs, cutoff_len=4).examples([TOLD])[0]

    assert isinstance(outcome, LeftOut)


def test_a_pair_in_a_stage_of_marks_gives_a_wanted_and_an_unwanted_answer():
    stage = fitted(Marked)
    counts = Counts()

    ((wanted, unwanted),) = stage.examples([TOLD])
    ((alone,),) = stage.examples(
        [Feedback(Conversation((*PROMPT.messages, TOLD.rejected), PROMPT.system), False, HERE)]
    )
    stage.passes_over(TOLD, Encoding(stage, stage.reading(None)), counts)
    counts.keep([wanted, unwanted])

    assert wanted.sequence_numbers["label"] == (1.0,)
    assert unwanted.sequence_numbers["label"] == alone.sequence_numbers["label"] == (0.0,)
    assert list(unwanted.input_ids) == list(alone.input_ids)
    assert [each.num_units for each in (wanted, unwanted, alone)] == [1, 1, 1]
    assert counts.remarks == {FROM_PAIRS: 1}
    assert (counts.num_kept, counts.num_rows_split) == (2, 0)
    assert counts.num_learned == sum(
        label >= 0 for each in (wanted, unwanted) for label in each.labels
    )


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_an_empty_answer_is_mended_by_its_own_name(side: str):
    row = {"instruction": "Name a wood.", "chosen": "Spruce.", "rejected": "Stone."}

    with pytest.raises(RowError) as raised:
        read(row | {side: " "})

    assert f'name its column as "{side}"' in raised.value.fix


@pytest.mark.parametrize("kind", [Pairs, Marked])
def test_a_margin_that_nothing_is_learned_with_is_told(kind: Any):
    stage = fitted(kind)
    counts, record = Counts(), replace(TOLD, margin=1.5)

    assert not stage.passes_over(record, Encoding(stage, stage.reading(None)), counts)

    assert counts.remarks[UNUSED_MARGIN] == 1
    (outcome,) = stage.examples([record])
    assert all("margin" not in each.sequence_numbers for each in outcome)


@pytest.mark.parametrize("kind", [Pairs, Marked])
def test_the_longest_sequence_of_a_pair_is_told_and_what_is_cut_once(kind: Any):
    whole, cut = fitted(kind), fitted(kind, cutoff_len=30)
    counts, of_cut = Counts(), Counts()
    long = replace(TOLD, chosen=Message("assistant", "Spruce. " * 20))

    for stage, into in ((whole, counts), (cut, of_cut)):
        (outcome,) = stage.examples([long])
        into.keep(outcome)

    longest = max(max(each.sequence_lengths) for each in whole.examples([long])[0])
    assert counts.longest == of_cut.longest == longest
    assert of_cut.num_tokens + of_cut.num_tokens_cut == counts.num_tokens
    assert (counts.num_rows_cut, of_cut.num_rows_cut) == (0, 1)


@pytest.mark.parametrize("stage", ["dpo", "kto", "rm"])
def test_what_is_about_turns_is_told_or_refused(stage: str, capsys: pytest.CaptureFixture[str]):
    settings: dict[str, Any] = {"packing": True, "mask_history": True}
    made = make_stage(stage, **settings)
    made.fit(tiny.make_tokenizer(), TEMPLATES.get("chatml"))

    told = capsys.readouterr().err
    assert "whole answers are learned from: packing, mask_history have no effect" in told
    split = find_problems(make_arguments(stage, on_overlong="split"))
    assert any("learns from answers as they are" in problem for problem in split)


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_travel_from_a_file_to_a_set_mixed_held_out_and_streamed(
    tmp_path: Path, streaming: bool
):
    rows = [PAIR | {"prompt": f"Name wood {at}.", "margin": at / 2} for at in range(8)]
    rows += [PAIR | {"rejected": None}]
    (tmp_path / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    settings = {
        "dataset": str(tmp_path / "pairs.json"),
        "cache_dir": str(tmp_path / "cache"),
        "streaming": streaming,
        "val_size": 0 if streaming else 2,
        "max_steps": 2,
        "max_bad_rows": 1,
    }

    data = load_datasets(make_arguments("rm", **settings), fitted(RewardModeling, **settings))

    examples = data.train.take(9)
    if not streaming:
        examples += data.eval[""].take(9)
        margins = sorted(each.sequence_numbers["margin"][0] for each in examples)
        assert margins == [at / 2 for at in range(8)]
        (report,) = data.report.sets
        assert (report.num_kept, report.num_learned, report.remarks) == (8, 16, {})
    assert all(len(each.lengths) == 2 and each.num_units == 1 for each in examples)
