from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import TemplateError
from luthier.records import Conversation, Message, Piece, Special, Token
from luthier.templates.template import TEMPLATES, Template, fill
from tests.templates.battery import CALL, TOOLS, call_tools, join, talk

WORDS = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=20)
"""Contents; numbered marks are put around them where they must be told apart."""


def learned(pieces: list[Piece]) -> str:
    return join([piece for piece in pieces if piece.is_learned])


def pieces_of(template: Template, conversation: Conversation, **options: bool) -> list[Piece]:
    turns = template.turns(conversation, **options)
    return [piece for turn in turns for piece in (*turn.prompt, *turn.answer)]


def test_a_turn_of_chatml_reads_as_written_down():
    (turn,) = TEMPLATES.get("chatml").turns(talk("Hi", "Hello", system="S"))

    assert join(turn.prompt) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert turn.answer == (Piece("Hello<|im_end|>\n", is_learned=True),)


def test_tokens_named_by_their_part_stay_apart_from_text():
    (turn,) = TEMPLATES.get("llama2").turns(talk("Hi", "Hello", system="S"))

    assert turn.prompt == (
        Piece(Special.BOS),
        Piece("[INST] <<SYS>>\nS\n<</SYS>>\n\nHi [/INST]"),
    )
    assert turn.answer == (Piece("Hello", True), Piece(Special.EOS, True))


def test_tokens_named_by_their_text_stay_apart_from_text():
    (turn,) = TEMPLATES.get("chatglm3").turns(talk("Hi", "Hello"))

    assert [piece.content for piece in turn.prompt] == [
        Token("[gMASK]"),
        Token("sop"),
        Token("<|user|>"),
        "\n",
        "Hi",
        Token("<|assistant|>"),
    ]


def test_only_the_first_hole_is_filled_and_with_the_very_text():
    assert fill(("a {{content}} b {{content}}",), "{{content}}\\1") == [
        "a {{content}}\\1 b {{content}}"
    ]


@given(
    name=st.sampled_from(TEMPLATES.names()),
    contents=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3),
)
def test_each_content_stands_once_and_in_order(name, contents):
    marked = [
        f"<{turn}{side}>{text}</{turn}{side}>"
        for turn, pair in enumerate(contents)
        for side, text in zip("qa", pair, strict=True)
    ]

    text = join(pieces_of(TEMPLATES.get(name), talk(*marked)))

    assert [text.count(content) for content in marked] == [1] * len(marked)
    assert [text.index(content) for content in marked] == sorted(map(text.index, marked))


@given(
    name=st.sampled_from(TEMPLATES.names()),
    contents=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3),
)
def test_what_is_learned_is_the_answers_and_nothing_of_the_questions(name, contents):
    template = TEMPLATES.get(name)
    questions = [f"<q{turn}>" for turn in range(len(contents))]
    answers = [f"<a{turn}>{pair[1]}" for turn, pair in enumerate(contents)]
    marked = [text for pair in zip(questions, answers, strict=True) for text in pair]

    text = learned(pieces_of(template, talk(*marked)))

    thought = template.empty_thought if template.is_reasoning else ""
    assert text == "".join(
        thought + join([Piece(part) for part in fill(template.assistant, answer)])
        for answer in answers
    )


@given(name=st.sampled_from(TEMPLATES.names()), turns=st.integers(2, 4))
def test_turns_do_not_depend_on_what_follows(name, turns):
    contents = [f"text {number}" for number in range(2 * turns)]
    template = TEMPLATES.get(name)

    whole = template.turns(talk(*contents))

    assert template.turns(talk(*contents[:2])) == whole[:1]
    assert template.turns(talk(*contents[:-2])) == whole[:-1]


@given(name=st.sampled_from(TEMPLATES.names()), turns=st.integers(1, 3))
def test_a_masked_history_reads_as_a_prompt_and_its_answer(name, turns):
    contents = [f"text {number}" for number in range(2 * turns)]
    template = TEMPLATES.get(name)
    conversation = talk(*contents)
    asked = dataclasses.replace(conversation, messages=conversation.messages[:-1])

    masked = pieces_of(template, conversation, is_history_masked=True)
    turn = template.turn(asked, conversation.messages[-1])

    assert join(masked) == join([*turn.prompt, *turn.answer])
    assert learned(masked) == join(turn.answer)


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_a_prompt_is_what_stands_before_the_answer(name):
    template = TEMPLATES.get(name)
    turn = template.turn(talk("Hi"), Message("assistant", "Hello"))

    assert turn.prompt == template.prompt(talk("Hi"))
    assert not any(piece.is_learned for piece in turn.prompt)
    assert all(piece.is_learned for piece in turn.answer)


def test_an_empty_system_text_is_none():
    template = TEMPLATES.get("qwen")

    assert template.turns(talk("a", "b", system="")) == template.turns(talk("a", "b"))
    assert "You are Qwen" in join(template.prompt(talk("a")))


def test_tools_end_the_system_text_and_open_one_where_there_is_none():
    (turn,) = TEMPLATES.get("qwen3_nothink").turns(talk("a", "b", tools=TOOLS))

    assert join(turn.prompt).startswith("<|im_start|>system\n\n\n# Tools\n\n")


@pytest.mark.parametrize("tools", ["[]", " ", "\n", "null", "[ ]"])
def test_no_tools_open_no_system_block(tools):
    for name in ("chatml", "qwen3", "glm4"):
        template = TEMPLATES.get(name)
        assert template.turns(talk("a", "b", tools=tools)) == template.turns(talk("a", "b"))
    (turn,) = TEMPLATES.get("phi4_mini").turns(talk("a", "b", tools="[]"))
    assert join(turn.prompt).startswith("<|system|><|tool|>[]<|/tool|><|end|><|user|>a")


def test_moss_vl_writes_tools_without_a_system_text_at_the_head_of_their_turn():
    (alone,) = TEMPLATES.get("moss_vl").turns(talk("a", "b", tools=TOOLS))
    (beside,) = TEMPLATES.get("moss_vl").turns(talk("a", "b", system="S", tools=TOOLS))

    assert join(alone.prompt).startswith("<|im_start|>system\n# Tools\n\n")
    assert join(beside.prompt).startswith("<|im_start|>system\nS\n\n# Tools\n\n")


def test_text_and_thought_around_a_call_stay_before_it():
    text = f"<think>\nso\n</think>\n\nI look.<tool_call>\n{CALL}\n</tool_call>"

    answer = TEMPLATES.get("qwen").turns(call_tools(text))[0].answer

    assert join(answer).startswith("<think>\nso\n</think>\n\nI look.\n<tool_call>\n{")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("qwen", "I look.\n<tool_call>\n{"),
        ("qwen3", "<think>\nso\n</think>\n\nI look.\n<tool_call>\n{"),
        ("glm4_moe", "\n<think>\nso\n</think>\n\nI look.\n<tool_call>get_weather"),
        ("seed_oss", "<seed:think>so</seed:think>I look.\n<seed:tool_call>"),
        ("qwen3_5", "<think>\nso\n</think>\n\nI look.\n\n<tool_call>\n<function=get_weather>"),
        ("gemma4", "<|channel>thought\nso<channel|>I look.<|tool><|tool_call>call:get_weather{"),
        ("mistral", " I look.[TOOL_CALLS] [{"),
        ("ministral", "I look.[TOOL_CALLS][{"),
        ("chatml", "I look.\nAction: get_weather"),
    ],
)
def test_thought_text_and_calls_stand_in_this_order(name, written):
    thought = "<think>so</think>" if "so" in written else ""
    conversation = call_tools(CALL, said=thought + "I look.")

    answer = TEMPLATES.get(name).turns(conversation)[0].answer

    assert join(answer).startswith(written)


def test_every_marked_call_is_kept():
    text = "".join(f"<tool_call>{CALL}</tool_call>" for _ in range(2))

    answer = TEMPLATES.get("qwen").turns(call_tools(text))[0].answer

    assert join(answer).count("get_weather") == 2


def test_llama2_says_where_its_system_text_finds_no_question():
    conversation = Conversation(
        (Message("observation", "found"), Message("assistant", "yes")), system="S"
    )

    with pytest.raises(TemplateError, match="first question"):
        TEMPLATES.get("llama2").turns(conversation)


def test_a_conversation_that_ends_with_a_question_is_not_learned():
    with pytest.raises(TemplateError, match="ends with an answer"):
        TEMPLATES.get("chatml").turns(talk("a", "b", "c"))


@given(changed=st.sampled_from(["user", "default_system", "tool_format", "enable_thinking"]))
def test_a_fingerprint_changes_with_the_template(changed):
    template = TEMPLATES.get("qwen3")
    value = {
        "user": ("{{content}}",),
        "default_system": "other",
        "tool_format": "default",
        "enable_thinking": False,
    }[changed]

    assert dataclasses.replace(template, **{changed: value}).fingerprint() != template.fingerprint()
    assert dataclasses.replace(template).fingerprint() == template.fingerprint()


def test_the_room_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from luthier.templates import chat_template, fit, template\n"
        "[template.TEMPLATES.get(name) for name in template.TEMPLATES.names()]\n"
        "heavy = {'torch', 'transformers', 'datasets', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
