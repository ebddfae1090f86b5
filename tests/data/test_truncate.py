from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.encode import OVERLONG, Encoder, EncodingOptions, Example, LeftOut
from luthier.data.truncate import find_uncut
from luthier.records import IGNORE_INDEX, Conversation, Message, Origin, Piece
from luthier.templates.chat_template import ChatTemplate
from luthier.templates.template import CONTENT, TEMPLATES, Template
from tests import tiny

TOKENIZER = tiny.make_tokenizer()
HEADER, END = "<|im_start|>assistant\n", "<|im_end|>\n"


def chat(*texts: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    messages = (Message(roles[at % 2], text) for at, text in enumerate(texts))
    return Conversation(tuple(messages), system=system, origin=Origin("rows.json", 3))


EFFICIENT = Template("efficient", user=("Q:" + CONTENT + "A:",), efficient_eos=True)


def make(template: Any, **options: Any) -> Encoder:
    chosen = ChatTemplate(TOKENIZER) if template == "own" else template
    if isinstance(chosen, str):
        chosen = TEMPLATES.get(chosen)
    return Encoder(TOKENIZER, chosen, EncodingOptions(**options))


def learn(conversation: Conversation, template: Any = "chatml", **options: Any) -> Any:
    (outcome,) = make(template, **options).learn([conversation])
    return outcome


def texts(outcome: list[Example]) -> list[str]:
    return [TOKENIZER.decode(one.input_ids) for one in outcome]


def ask(conversation: Conversation, template: Any = "chatml", **options: Any) -> Any:
    (outcome,) = make(template, **options).ask([conversation])
    return outcome


def learned(example: Example) -> str:
    return TOKENIZER.decode([one for one in example.labels if one != IGNORE_INDEX])


@pytest.mark.parametrize("template", ["chatml", "own"])
@settings(max_examples=60, deadline=None)
@given(
    asked=st.text("ab \n", min_size=1, max_size=60),
    answered=st.text("user assistant", min_size=1, max_size=60).filter(str.strip),
    cutoff_len=st.integers(10, 80),
)
def test_a_prompt_keeps_its_headers_and_only_a_whole_answer_its_end(
    template, asked, answered, cutoff_len
):
    asked, answered = f"q{asked}q", f"a{answered}a"
    outcome = learn(chat(asked, answered), template, cutoff_len=cutoff_len)

    if isinstance(outcome, LeftOut):
        assert cutoff_len < 20
        return
    ((text,), example) = texts(outcome), outcome[0]
    assert text.startswith("<|im_start|>user\nq")
    head, _, said = text.rpartition(f"<|im_end|>\n{HEADER}")
    assert head.count("<|im_end|>") == 0
    assert said == learned(example)
    assert (answered + END).startswith(said)
    assert len(example.input_ids) == min(cutoff_len, len(example.input_ids) + example.num_cut)


def test_the_system_text_and_both_headers_outlive_a_long_question():
    conversation = chat("question " * 50, "answer", system="be kind")

    (text,) = texts(learn(conversation, cutoff_len=60))

    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nquestion")
    assert text.endswith(f"{END}{HEADER}answer{END}")


def test_turns_without_room_are_left_out_whole():
    conversation = chat("one", "two", "three " * 20, "four", "five", "six")

    (text,) = texts(learn(conversation, cutoff_len=50))
    (last,) = texts(learn(conversation, cutoff_len=50, mask_history=True))

    assert text.startswith(
        f"<|im_start|>user\none{END}{HEADER}two{END}<|im_start|>user\nthree three"
    )
    assert text.endswith(f"{HEADER}four{END}")
    assert last.endswith(f"<|im_start|>user\nfive{END}{HEADER}six{END}")


@pytest.mark.parametrize("template", ["chatml", "vicuna", "own", EFFICIENT])
@pytest.mark.parametrize("options", [{}, {"mask_history": True}, {"train_on_prompt": True}])
def test_a_cut_answer_is_not_taught_to_end(template, options):
    if template is EFFICIENT and "train_on_prompt" in options:
        return  # they do not go together
    eos = TOKENIZER.eos_token_id
    row = chat("one", "two", "question", "answer " * 100)

    for conversation in (row, chat(*(one.content for one in row.messages[2:]))):
        (example,) = learn(conversation, template, cutoff_len=250, **options)
        (asked,) = ask(conversation, template, cutoff_len=250)
        (whole,) = ask(chat("question", "answer"), template, cutoff_len=250)

        for said in (example.labels[-9:], example.input_ids[-9:], asked.labels[-9:]):
            assert "answer" in TOKENIZER.decode(said)
        assert eos not in (example.input_ids[-1], example.labels[-1], *asked.labels)
        assert eos in whole.labels
        assert "question" in TOKENIZER.decode(asked.input_ids)


def test_a_cut_call_of_a_tool_is_not_taught_to_end():
    call = '{"name": "find", "arguments": {"text": "' + "a" * 200 + '"}}'
    conversation = Conversation((Message("user", "q"), Message("function", call)), tools="[]")

    (example,) = learn(conversation, "qwen", cutoff_len=90)

    assert learned(example) == '<tool_call>\n{"name": "find", "arguments": '


@pytest.mark.parametrize("template", ["qwen", "own"])
@pytest.mark.parametrize("options", [{}, {"mask_history": True}, {"on_overlong": "split"}])
def test_what_is_never_cut_and_too_long_leaves_the_row_out(template, options):
    tools = json.dumps([{"name": "find", "parameters": {"type": "object"}}] * 40)
    rows = [chat("one", "two", "three", "four", system="be kind " * 40)]
    rows += [dataclasses.replace(chat("one", "two"), tools=tools)] if template == "qwen" else []

    for row in rows:
        outcomes = learn(row, template, cutoff_len=60, **options), ask(row, template, cutoff_len=60)

        assert [one.reason for one in outcomes] == [OVERLONG, OVERLONG]
        assert all(one.num_tokens > 100 for one in outcomes)


def test_a_masked_history_is_cut_as_a_prompt_is():
    contents = ["one " * 20, "two", "three " * 20, "four", "five", "six " * 3]
    conversation = chat(*contents, system="be kind")

    for cutoff_len in range(60, 130, 10):
        (kept,) = learn(conversation, cutoff_len=cutoff_len, mask_history=True)
        (asked,) = ask(conversation, cutoff_len=cutoff_len)

        (text,) = texts([kept])
        assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n")
        assert kept.input_ids == asked.input_ids + asked.labels
        assert learned(kept) == f"six six six {END}"
        assert kept.num_cut == asked.num_cut > 0


def test_a_long_last_question_is_cut_behind_its_own_calls():
    call = Message("function", '{"name": "f", "arguments": {}}')
    messages = [Message("user", "old"), Message("assistant", "old"), Message("user", "question")]
    messages += [call, Message("observation", "found " * 60), Message("assistant", "answer")]
    conversation = Conversation(tuple(messages), system="be kind")

    (example,) = learn(conversation, "qwen", cutoff_len=200, mask_history=True)

    (text,) = texts([example])
    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nquestion")
    assert "<tool_call>" in text
    assert text.endswith(f"\n</tool_response><|im_end|>\n{HEADER}answer{END}")
    assert len(example.input_ids) == 200


def test_long_rows_are_dropped_or_told():
    for policy in ("drop", "error"):
        outcome = learn(chat("one " * 50, "two"), cutoff_len=30, on_overlong=policy)

        assert isinstance(outcome, LeftOut)
        assert outcome.reason == OVERLONG
        assert outcome.num_tokens > 30
        assert len(learn(chat("one", "two"), cutoff_len=30, on_overlong=policy)) == 1


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8), cutoff_len=st.integers(30, 120)
)
def test_the_parts_of_a_row_hold_every_turn_once(lengths, cutoff_len):
    pairs = [(f"q{at} " * size, f"a{at}") for at, size in enumerate(lengths)]
    conversation = chat(*(text for pair in pairs for text in pair), system="s")

    outcome = learn(conversation, cutoff_len=cutoff_len, on_overlong="split")

    found = texts(outcome)
    assert all(len(one.input_ids) <= cutoff_len for one in outcome)
    assert all(one.startswith("<|im_start|>system\ns<|im_end|>") for one in found)
    answers = [f"a{at}{END}" for at in range(len(lengths))]
    assert "".join(map(learned, outcome)) == "".join(answers)


def test_parts_begin_with_questions_where_they_can():
    messages = [Message("user", "q" * 9), Message("function", '{"name": "f", "arguments": {}}')]
    messages += [Message("observation", "found"), Message("assistant", "answer")]
    conversation = Conversation((*messages, *messages))

    (half,) = learn(Conversation(tuple(messages)), "qwen", cutoff_len=999)
    enough = len(half.input_ids) + 20  # for the next question, not for the call behind it

    outcome = learn(conversation, "qwen", cutoff_len=enough, on_overlong="split")

    assert len(outcome) == 2
    assert texts(outcome)[0] == texts(outcome)[1]


def test_of_a_long_prompt_the_oldest_turns_go_first():
    tokenizer = TOKENIZER
    encoder = Encoder(tokenizer, TEMPLATES.get("chatml"), EncodingOptions(45))
    conversation = chat("one " * 20, "two", "three", "four", "five", "six")

    (outcome,) = encoder.ask([conversation])

    (example,) = outcome
    text = tokenizer.decode(example.input_ids)
    assert text.startswith("<|im_start|>user\nthree") or text.startswith("<|im_start|>user\nfive")
    assert text.endswith(f"five{END}{HEADER}")
    assert tokenizer.decode(example.labels) == f"six{END}"
    assert example.num_cut > 0


def test_what_is_never_cut_is_what_is_no_content():
    template = TEMPLATES.get("chatml")

    head, tail = find_uncut(chat("user", "assistant"), -1, template.turns)

    assert head == (Piece("<|im_start|>user\n"),)
    assert tail == (Piece(f"<|im_end|>\n{HEADER}", behind="<|im_start|>user\nuser"),)


def marked(*weights: float | None) -> Conversation:
    given = chat(*(f"m{at}" for at in range(len(weights))))
    pairs = zip(given.messages, weights, strict=True)
    messages = tuple(dataclasses.replace(one, weight=weight) for one, weight in pairs)
    return dataclasses.replace(given, messages=messages)


@pytest.mark.parametrize(
    ("weights", "options", "expected"),
    [
        ((None, None, None, None), {}, ["m1", "m3"]),
        ((None, 0, None, None), {}, ["m3"]),
        ((None, 0, None, 1), {}, ["m3"]),
        ((None, 1, None, None), {"mask_history": True}, ["m1", "m3"]),
        ((None, None, None, 0), {"train_on_prompt": True}, ["m0", "m1", "m2"]),
        ((0, None, None, None), {"train_on_prompt": True}, ["m1", "m2", "m3"]),
        ((1, None, None, None), {}, ["m0", "m1", "m3"]),
    ],
)
def test_a_messages_weight_decides_before_the_options(weights, options, expected):
    for template in ("chatml", "own"):
        (example,) = learn(marked(*weights), template, cutoff_len=99, **options)

        assert [name for name in ("m0", "m1", "m2", "m3") if name in learned(example)] == expected
        assert not example.token_numbers
        pairs = zip(example.input_ids, example.labels, strict=True)
        assert all(label in (token, IGNORE_INDEX) for token, label in pairs)


def test_an_efficient_eos_of_a_masked_answer_is_not_learned():
    eos = TOKENIZER.eos_token_id

    (both,) = learn(marked(None, None, None, None), EFFICIENT, cutoff_len=99)
    (first,) = learn(marked(None, None, None, 0), EFFICIENT, cutoff_len=99)

    assert [one.labels.count(eos) for one in (both, first)] == [2, 1]


def test_weights_scale_what_is_learned():
    row = dataclasses.replace(marked(None, 0.5, None, None), weight=2)

    (example,) = learn(row, cutoff_len=99)

    kept = zip(example.labels, example.token_numbers["weight"], strict=True)
    assert {weight for label, weight in kept if label != IGNORE_INDEX} == {1, 2}


def test_a_row_that_masks_all_it_says_is_left_out_and_no_problem():
    assert isinstance(learn(marked(None, 0), cutoff_len=99), LeftOut)


def test_an_efficient_eos_counts_as_the_answer_that_it_ends():
    (example,) = learn(marked(None, 0.5, 0, 2), EFFICIENT, cutoff_len=99)

    kept = list(zip(example.labels, example.token_numbers["weight"], strict=True))
    eos = TOKENIZER.eos_token_id
    assert [weight for label, weight in kept if label == eos] == [0.5, 2]
    assert {weight for label, weight in kept if label != IGNORE_INDEX} == {0.5, 2}
