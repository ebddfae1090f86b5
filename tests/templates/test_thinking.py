from __future__ import annotations

import dataclasses

import pytest

from luthier.records import Message
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template
from luthier.templates.thinking import Thinking
from tests.templates.battery import join, talk

THOUGHT = "<think>\nso\n</think>\n\n"
EMPTY = "<think>\n\n</think>\n\n"


def qwen3(enable_thinking: bool | None = True, preserve_thinking: bool = False) -> Template:
    return dataclasses.replace(
        TEMPLATES.get("qwen3"),
        enable_thinking=enable_thinking,
        preserve_thinking=preserve_thinking,
    )


def test_an_empty_thought_is_learned_when_thinking_is_on():
    (turn,) = qwen3(True).turns(talk("Hi", "Hello"))

    assert join(turn.answer).startswith(EMPTY + "Hello")
    assert EMPTY not in join(turn.prompt)


@pytest.mark.parametrize("answer", ["Hello", THOUGHT + "Hello"])
def test_thoughts_are_gone_and_the_prompt_closes_them_when_thinking_is_off(answer):
    (turn,) = qwen3(False).turns(talk("Hi", answer))

    assert join(turn.prompt).endswith(EMPTY)
    assert join(turn.answer).startswith("Hello")


def test_the_data_decides_when_thinking_is_none():
    first, second = qwen3(None).turns(talk("Hi", THOUGHT + "Hello", "Again", "Yes"))

    assert join(first.answer).startswith(THOUGHT)
    assert not join(first.prompt).endswith(EMPTY)
    assert join(second.prompt).endswith(EMPTY)
    assert join(second.answer).startswith("Yes")


@pytest.mark.parametrize(("enable_thinking", "is_closed"), [(True, 0), (False, 1), (None, 1)])
def test_a_prompt_closes_the_thought_unless_thinking_is_on(enable_thinking, is_closed):
    assert join(qwen3(enable_thinking).prompt(talk("Hi"))).count(EMPTY) == is_closed


def test_with_none_a_known_answer_decides_on_its_prompt():
    template = qwen3(None)

    assert EMPTY not in join(template.prompt(talk("Hi"), Message("assistant", THOUGHT + "Hello")))
    assert EMPTY in join(template.prompt(talk("Hi"), Message("assistant", "Hello")))


@pytest.mark.parametrize(("preserve_thinking", "count"), [(False, 0), (True, 1)])
def test_earlier_thoughts_are_shown_in_a_prompt_only_when_kept(preserve_thinking, count):
    prompt = qwen3(preserve_thinking=preserve_thinking).prompt(
        talk("Hi", THOUGHT + "Hello", "Again")
    )

    assert join(prompt).count(THOUGHT) == count


@pytest.mark.parametrize(
    ("is_history_masked", "preserve_thinking", "count"),
    [(False, False, 2), (True, False, 1), (True, True, 2)],
)
def test_training_shows_earlier_thoughts_unless_only_the_last_answer_is_learned(
    is_history_masked, preserve_thinking, count
):
    turns = qwen3(preserve_thinking=preserve_thinking).turns(
        talk("Hi", THOUGHT + "Hello", "Again", THOUGHT + "Yes"),
        is_history_masked=is_history_masked,
    )

    text = "".join(join([*turn.prompt, *turn.answer]) for turn in turns)
    assert text.count(THOUGHT) == count


def test_glm_4_7_closes_a_thought_that_was_never_opened():
    (turn,) = TEMPLATES.get("glm4_7").turns(talk("Hi", "Hello"))

    assert join(turn.answer) == "</think>\nHello"


def test_every_thought_is_taken_out_and_the_newlines_left_before_the_answer():
    policy = Thinking(("<think>", "</think>"), "", is_enabled=True, is_preserved=False)

    assert policy.without("<think>a\nb</think>\n\nHello<think>c</think>") == "Hello"
    assert policy.without("<think>a") == "<think>a"
