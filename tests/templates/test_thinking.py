from __future__ import annotations

import dataclasses

import pytest

from luthier.records import Conversation, Message
from luthier.templates.template import TEMPLATES, Template
from luthier.templates.thinking import Thinking
from tests.templates.battery import CALL, join, talk

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


@pytest.mark.parametrize(
    "answer",
    [
        "<think>\nso\n</think>\n\nHello",
        "<think>\nso\n</think>\nHello",
        "<think>so</think>Hello",
        "<think> so </think> Hello",
        "\n<think>\r\nso\n\n</think>\n\n\nHello",
        "so\n</think>\n\nHello",
        "so</think>Hello",
    ],
)
@pytest.mark.parametrize("name", ["qwen3", "glm4_7", "seed_oss", "gpt_oss"])
def test_a_thought_is_known_by_its_tags_whatever_space_is_around(name, answer):
    template = TEMPLATES.get(name)
    off = dataclasses.replace(template, enable_thinking=False)
    opening, closing = template.thought_words

    (turn,) = template.turns(talk("Hi", answer))
    (closed,) = off.turns(talk("Hi", answer))
    prompt = join(template.prompt(talk("Hi", answer, "Again")))

    assert f"{opening}so{closing}Hello" in join(turn.answer)
    assert "so" not in join(closed.answer)
    assert "Hello" in join(closed.answer)
    assert join(closed.prompt).endswith(template.empty_thought)
    assert f"{opening}so" not in prompt
    assert "Hello" in prompt


def test_tags_that_are_only_spoken_of_and_indented_code_stay():
    spoken_of = "Write <think> first and </think> last."

    assert join(qwen3(False).turns(talk("Hi", spoken_of))[0].answer).startswith(spoken_of)
    (turn,) = qwen3().turns(talk("Hi", "<think>\n  - so\n</think>\n\n    x = 1"))
    assert join(turn.answer).startswith("<think>\n  - so\n</think>\n\n    x = 1")


def test_a_history_keeps_the_thoughts_that_led_to_the_calls_for_the_last_question():
    conversation = Conversation(
        (
            Message("user", "Hi"),
            Message("function", "<think>first</think>" + CALL),
            Message("observation", "3"),
            Message("assistant", "<think>second</think>It is 3."),
            Message("user", "Again"),
            Message("function", CALL, said="<think>third</think>"),
            Message("observation", "4"),
            Message("assistant", "<think>fourth</think>It is 4."),
        )
    )
    asked = dataclasses.replace(conversation, messages=conversation.messages[:-1])

    masked = qwen3().turns(conversation, is_history_masked=True)
    prompt = join(qwen3().prompt(asked))

    assert "".join(join(turn.prompt + turn.answer) for turn in masked) == prompt + join(
        masked[-1].answer
    )
    assert [word in prompt for word in ("first", "second", "third")] == [False, False, True]
    assert "<think>\nthird\n</think>\n\n<tool_call>\n" in prompt
    assert "third" not in join(qwen3(False).prompt(asked))
    assert "first" in join(qwen3(preserve_thinking=True).prompt(asked))


def test_gpt_oss_writes_an_answer_without_thoughts_to_its_channel_and_ends_it():
    template = TEMPLATES.get("gpt_oss")
    talked = talk("What is 2 + 2?", "so</think>Four.", "And 3 + 3?", "Six.")
    asked = "<|start|>user<|message|>{}<|end|><|start|>assistant"
    start = "<|start|>system<|message|>S<|end|>" + asked.format("What is 2 + 2?")
    final = "<|channel|>final<|message|>"
    nothing = "<|channel|>analysis<|message|><|end|><|start|>assistant" + final
    talked = dataclasses.replace(talked, system="S")

    first, second = template.turns(talked)
    masked = template.turns(talked, is_history_masked=True)

    assert join(first.prompt + first.answer) == (
        f"{start}<|channel|>analysis<|message|>so<|end|><|start|>assistant{final}Four."
    )
    assert join(second.prompt) == "<|end|>" + asked.format("And 3 + 3?")
    assert join(second.answer) == nothing + "Six."
    assert "".join(join(turn.prompt + turn.answer) for turn in masked) == (
        f"{start}{final}Four.<|end|>{asked.format('And 3 + 3?')}{nothing}Six."
    )
    closed = dataclasses.replace(template, enable_thinking=False)
    assert join(closed.prompt(dataclasses.replace(talked, messages=talked.messages[:3]))) == (
        f"{start}{final}Four.<|end|>{asked.format('And 3 + 3?')}{nothing}"
    )
