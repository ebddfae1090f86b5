from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.check import RowProblem
from luthier.data.encode import OVERLONG, Encoder, EncodingOptions, Example, LeftOut
from luthier.data.frames import find_frames
from luthier.records import IGNORE_INDEX, Conversation, Message, Origin, Piece
from luthier.templates.chat_template import ChatTemplate
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import CONTENT, Template
from tests import tiny

TOKENIZER = tiny.make_tokenizer()
HEADER, END = "<|im_start|>assistant\n", "<|im_end|>\n"


def chat(*texts: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    messages = (Message(roles[at % 2], text) for at, text in enumerate(texts))
    return Conversation(tuple(messages), system=system, origin=Origin("rows.json", 3))


EFFICIENT = Template("efficient", user=("Q:" + CONTENT + "A:",), efficient_eos=True)


def learn(conversation: Conversation, template: Any = "chatml", **options: Any) -> Any:
    tokenizer = TOKENIZER
    chosen = ChatTemplate(tokenizer) if template == "own" else template
    if isinstance(chosen, str):
        chosen = TEMPLATES.get(chosen)
    encoder = Encoder(tokenizer, chosen, EncodingOptions(**options))
    (outcome,) = encoder.learn([conversation])
    return outcome


def texts(outcome: list[Example]) -> list[str]:
    return [TOKENIZER.decode(one.input_ids) for one in outcome]


def learned(example: Example) -> str:
    return TOKENIZER.decode([one for one in example.labels if one != IGNORE_INDEX])


@pytest.mark.parametrize("template", ["chatml", "own"])
@settings(max_examples=60, deadline=None)
@given(
    asked=st.text("ab \n", min_size=1, max_size=60),
    answered=st.text("user assistant", min_size=1, max_size=60).filter(str.strip),
    cutoff_len=st.integers(10, 80),
)
def test_neither_header_nor_end_is_ever_cut(template, asked, answered, cutoff_len):
    asked, answered = f"q{asked}q", f"a{answered}a"
    outcome = learn(chat(asked, answered), template, cutoff_len=cutoff_len)

    if isinstance(outcome, RowProblem):
        assert cutoff_len < 30
        return
    ((text,), example) = texts(outcome), outcome[0]
    assert len(example.input_ids) <= cutoff_len
    assert text.startswith("<|im_start|>user\nq")
    assert text.count(f"<|im_end|>\n{HEADER}a") == 1
    assert text.endswith(END)
    assert learned(example).endswith(END)
    if example.num_cut:
        assert len(example.input_ids) == cutoff_len


def test_the_system_text_and_both_headers_outlive_a_long_question():
    conversation = chat("question " * 50, "answer", system="be kind")

    (text,) = texts(learn(conversation, cutoff_len=60))

    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nquestion")
    assert text.endswith(f"{END}{HEADER}answer{END}")


def test_turns_without_room_are_left_out_whole():
    conversation = chat("one", "two", "three " * 20, "four", "five", "six")

    (text,) = texts(learn(conversation, cutoff_len=50))
    (last,) = texts(learn(conversation, cutoff_len=50, mask_history=True))

    assert text.startswith(f"<|im_start|>user\none{END}{HEADER}two{END}")
    assert text.endswith(END)
    assert last.endswith(f"<|im_start|>user\nfive{END}{HEADER}six{END}")


def test_an_end_that_is_a_token_of_its_own_is_kept():
    (example,) = learn(chat("question", "answer " * 100), "vicuna", cutoff_len=200)

    assert example.input_ids[-1] == TOKENIZER.eos_token_id == example.labels[-1]


def test_a_call_of_a_tool_ends_as_answers_do():
    call = '{"name": "find", "arguments": {"text": "' + "a" * 200 + '"}}'
    conversation = Conversation((Message("user", "q"), Message("function", call)), tools="[]")

    (text,) = texts(learn(conversation, "qwen", cutoff_len=90))

    assert text.endswith(END)


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


def test_frames_are_what_is_no_content():
    template = TEMPLATES.get("chatml")
    ((prompt, answer),) = find_frames(chat("user", "assistant"), template.turns)

    assert prompt.frame.head == (Piece("<|im_start|>user\n"),)
    assert prompt.frame.tail == (Piece(f"<|im_end|>\n{HEADER}"),)
    assert answer.frame.tail == (Piece(END, is_learned=True),)


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
        assert example.weights is None
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

    kept = zip(example.labels, example.weights, strict=True)
    assert {weight for label, weight in kept if label != IGNORE_INDEX} == {1, 2}


def test_a_row_that_masks_all_it_says_is_left_out_and_no_problem():
    assert isinstance(learn(marked(None, 0), cutoff_len=99), LeftOut)


def test_an_efficient_eos_counts_as_the_answer_that_it_ends():
    (example,) = learn(marked(None, 0.5, 0, 2), EFFICIENT, cutoff_len=99)

    kept = list(zip(example.labels, example.weights, strict=True))
    eos = TOKENIZER.eos_token_id
    assert [weight for label, weight in kept if label == eos] == [0.5, 2]
    assert {weight for label, weight in kept if label != IGNORE_INDEX} == {0.5, 2}
