from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.arguments.parse import parse_dict
from luthier.data.catalog import load_catalog
from luthier.data.check import RowProblem
from luthier.data.reading import DatasetReader
from luthier.errors import DataError
from luthier.example import Example
from luthier.inspecting.view import (
    PickedRow,
    ShownRow,
    Style,
    lines,
    page,
    pick_by_chance,
    pick_by_place,
    pick_first,
    show_row,
)
from luthier.records import IGNORE_INDEX, Conversation, Message, Origin, Pair
from luthier.stages.pairs import Pairs
from luthier.stages.stage import STAGES
from luthier.templates.template import TEMPLATES
from tests.stages.made import make_arguments, make_stage

TEXT = st.text("ab é漢😀\n<>&", min_size=1, max_size=12)


def conversation(*texts: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[at % 2], text) for at, text in enumerate(texts))  # type: ignore[arg-type]
    return Conversation(messages, system=system, origin=Origin("rows.jsonl", 7))


def show(
    tokenizer: Any, row: Conversation, template: str = "chatml", **options: Any
) -> tuple[ShownRow, list[Example]]:
    stage = make_stage("sft", **({"cutoff_len": 10_000} | options))
    stage.fit(tokenizer, TEMPLATES.get(template))
    picked = PickedRow("mine", str(row.origin), {"text": "of the row"}, row)
    (outcome,) = stage.examples([row])
    examples = [*outcome] if isinstance(outcome, list) else []
    return show_row(picked, stage), examples


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(TEXT, min_size=1, max_size=3).map(lambda said: [*said, *said]),
    system=st.none() | TEXT,
    cutoff_len=st.integers(4, 120),
    template=st.sampled_from(["chatml", "bailing", "default"]),
    option=st.sampled_from(["", "mask_history", "train_on_prompt", "split", "drop"]),
)
def test_what_is_shown_is_what_is_trained(
    tiny_tokenizer, texts, system, cutoff_len, template, option
):
    if option == "train_on_prompt" and template == "bailing":
        option = ""
    row = conversation(*texts, system=system)
    options: dict[str, Any] = {option: True} if "_" in option else {}
    options |= {"on_overlong": option} if option in ("split", "drop") else {}

    shown, examples = show(tiny_tokenizer, row, template, cutoff_len=cutoff_len, **options)

    for part, example in zip(shown.parts, examples, strict=bool(examples)):
        kept = [(one, number) for one in part.tokens if not one.is_cut for number in one.ids]
        assert [number for _, number in kept] == [*example.input_ids]
        assert [one.is_learned for one, _ in kept][1:] == [
            label != IGNORE_INDEX for label in example.labels[1:]
        ]
        assert part.num_tokens == len(example.input_ids)
        assert not any(one.is_learned for one in part.tokens if one.is_cut)
    if not examples:
        assert shown.problem is not None
        assert all(one.is_cut for part in shown.parts for one in part.tokens)


@given(texts=st.lists(TEXT, min_size=2, max_size=2))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_tokens_read_as_the_pieces(tiny_tokenizer, texts):
    shown, _ = show(tiny_tokenizer, conversation(*texts))

    pieces = "".join(one.text for one in shown.pieces).replace("EOS", "<|im_end|>")
    assert "".join(token.text for token in shown.parts[0].tokens) == pieces


def test_special_tokens_turns_and_answers_are_known(tiny_tokenizer):
    shown, _ = show(tiny_tokenizer, conversation("one", "two", "three", "four"))

    special = {token.text for token in shown.parts[0].tokens if token.is_special}
    assert special == {"<|im_start|>", "<|im_end|>"}
    assert {token.turn for token in shown.parts[0].tokens} == {1, 2}
    learned = "".join(token.text for token in shown.parts[0].tokens if token.is_learned)
    assert learned == "two<|im_end|>\nfour<|im_end|>\n"
    assert all(token.is_answer for token in shown.parts[0].tokens if token.is_learned)


def test_the_parts_of_a_split_row_are_shown_one_after_the_other(tiny_tokenizer):
    row = conversation("one " * 20, "two " * 20, "three " * 20, "four " * 20)

    shown, examples = show(tiny_tokenizer, row, cutoff_len=120, on_overlong="split")

    assert len(shown.parts) == len(examples) == 2
    text = "\n".join(lines(shown, Style(is_coloured=False), 120))
    assert text.index("part 1 of 2") < text.index("--- turn 1") < text.index("part 2 of 2")
    assert text.index("part 2 of 2") < text.index("--- turn 2")


def test_a_pipe_gets_brackets_and_no_colours(tiny_tokenizer):
    shown, _ = show(tiny_tokenizer, conversation("one " * 30, "two " * 30), cutoff_len=50)

    plain = "\n".join(lines(shown, Style(is_coloured=False), 50))
    coloured = "\n".join(lines(shown, Style(is_coloured=True), 50))

    assert "\x1b" not in plain
    assert plain.count("⟦") == plain.count("⟧") >= 2
    assert f"{shown.parts[0].num_cut:,} more are cut off" in plain
    assert "✂{" in plain
    assert "\x1b[32m" in coloured
    assert "\x1b[35m<|im_start|>\x1b[0m" in coloured


def test_control_characters_do_not_reach_the_terminal(tiny_tokenizer):
    shown, _ = show(tiny_tokenizer, conversation("a\x1b[2Jb", "c\x9bd"))

    assert not set("\x1b\x9b") & set("".join(lines(shown, Style(is_coloured=False), 50)))


def test_a_page_needs_nothing_else_and_shows_texts_as_they_are(tiny_tokenizer):
    said = "<script>alert(1)</script> & <b>"
    shown, _ = show(tiny_tokenizer, conversation(said, said))

    html = page([shown], "rows of <mine>", 2048)

    assert "<script" not in html
    assert not re.search(r"(src|href)=|https?://|@import|url\(", html)
    assert html.count("<span") == html.count("</span>")
    assert "rows of &lt;mine&gt;" in html
    assert html.count('class="t learned"') > 3


@pytest.mark.parametrize("is_coloured", [False, True])
def test_a_row_that_is_left_out_says_why(tiny_tokenizer, is_coloured):
    stage = make_stage("sft")
    stage.fit(tiny_tokenizer, TEMPLATES.get("chatml"))
    problem = RowProblem("rows.jsonl:3", "output", "empty", "Write it.")
    picked = PickedRow("mine", "rows.jsonl:3", {"output": ""}, problem=problem)

    shown = show_row(picked, stage)

    assert "output: empty. Write it." in "\n".join(lines(shown, Style(is_coloured), 100))
    assert "output: empty. Write it." in page([shown], "rows", 100)


def test_a_pair_shows_its_prompt_once_and_both_answers(tiny_tokenizer):
    stage = Pairs(make_arguments("sft"))
    stage.fit(tiny_tokenizer, TEMPLATES.get("chatml"))
    good, bad = (Message("assistant", text) for text in ("spruce", "stone"))
    pair = Pair(Conversation((Message("user", "a wood?"),)), good, bad, Origin("rows.jsonl", 7))

    shown = show_row(PickedRow("mine", "rows.jsonl:7", {}, pair), stage)

    assert [*shown.said()] == [("user", "a wood?"), ("chosen", "spruce"), ("rejected", "stone")]
    chosen, rejected = shown.parts
    assert "".join(one.text for one in chosen.tokens).count("a wood?") == 1
    assert all(one.is_answer and one.is_learned for one in rejected.tokens)
    assert "".join(one.text for one in rejected.tokens).startswith("stone")
    text = "\n".join(lines(shown, Style(False), 100))
    assert "chosen: tokens: " in text
    assert "1 rejected ⟦" in text
    assert text.count("1 prompt ") == len([one for one in shown.pieces if not one.is_answer])


@pytest.fixture
def reader(tmp_path: Path) -> DatasetReader:
    file = tmp_path / "data" / "rows.jsonl"
    file.parent.mkdir()
    rows = [json.dumps({"instruction": f"q{n}", "output": f"a{n}"}) for n in range(1, 3001)]
    rows[1] = "{"
    rows[2] = '{"instruction": "q3"}'
    file.write_text("\n".join(rows))
    arguments = parse_dict({"dataset": [str(file)]}, purpose="data")
    stage = STAGES.get("sft")(arguments)
    return DatasetReader(arguments, load_catalog({}), str(file), stage)


def test_the_first_rows_are_shown_with_those_that_are_wrong(reader):
    first, broken, unanswered, fourth = pick_first(reader, 4)

    assert first.record is not None
    assert first.record.messages[0].content == "q1"
    assert broken.problem is not None
    assert "not JSON" in broken.problem.reason
    assert unanswered.values == {"instruction": "q3"}
    assert unanswered.problem is not None
    assert unanswered.problem.field == "output"
    assert fourth.origin.endswith("rows.jsonl:4")


def test_chance_draws_different_rows_and_the_same_for_a_seed(reader):
    drawn = {seed: [row.origin for row in pick_by_chance(reader, 5, seed)] for seed in (1, 2, 1)}
    again = [row.origin for row in pick_by_chance(reader, 5, 1)]
    lines = [int(origin.rpartition(":")[2]) for origin in drawn[1]]

    assert again == drawn[1] != drawn[2]
    assert lines == sorted(set(lines))
    assert max(lines) > 100


@pytest.mark.parametrize("place", ["rows.jsonl:1234", "data/rows.jsonl:1234"])
def test_a_place_is_found_by_the_end_of_its_path(reader, place):
    (row,) = pick_by_place([reader], [place])

    assert row.values == {"instruction": "q1234", "output": "a1234"}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("rows.jsonl:4000", "rows.jsonl:3000"),
        ("other.jsonl:1", "No file ends so"),
        ("ows.jsonl:1", "No file ends so"),
        ("rows.jsonl", "a file and a line"),
    ],
)
def test_a_place_where_no_row_starts_is_answered_with_the_nearest(reader, place, said):
    with pytest.raises(DataError, match=said):
        pick_by_place([reader], [place])
