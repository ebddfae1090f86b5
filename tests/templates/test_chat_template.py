from __future__ import annotations

import copy
import dataclasses
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import TemplateError
from luthier.records import Message
from luthier.templates.chat_template import ChatTemplate, first_difference
from luthier.templates.jinja import write_chat_template
from luthier.templates.template import TEMPLATES
from tests import tiny
from tests.templates.battery import CALL, call_tools, join, talk

STRIPS_HISTORY = """
{%- for message in messages %}
{%- set content = message['content'] %}
{%- if message['role'] == 'assistant' and not loop.last %}
{%- set content = content.split('</think>')[-1] %}
{%- endif %}
{{- '<|im_start|>' ~ message['role'] ~ '\n' ~ content ~ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
OPENS_THOUGHTS = tiny.CHATML.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}"
)


def read(chat_template: str = tiny.CHATML, **options: object) -> ChatTemplate:
    return ChatTemplate(tiny.make_tokenizer(chat_template=chat_template), **options)


@given(contents=st.lists(st.text("abc <>三\n", min_size=1), min_size=2, max_size=6))
def test_turns_are_those_of_the_named_template_that_renders_alike(contents):
    own, template = read(), TEMPLATES.get("qwen3_nothink")
    conversation = talk(*contents[: len(contents) // 2 * 2], system="S")

    theirs = own.turns(conversation)
    ours = template.turns(conversation)

    assert [join(turn.prompt) for turn in theirs] == [join(turn.prompt) for turn in ours]
    assert [join(turn.answer) for turn in theirs] == [join(turn.answer) for turn in ours]


@pytest.mark.parametrize("name", ["llama3", "mistral", "gemma2", "qwen", "glm4"])
def test_a_chat_template_that_we_wrote_is_read_back_with_its_tools(name):
    template = TEMPLATES.get(name)
    tokenizer = tiny.make_tokenizer(chat_template=write_chat_template(template))
    conversation = call_tools(CALL, system="S")

    theirs = ChatTemplate(tokenizer).turns(conversation)

    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token
    assert [join(turn.answer) for turn in theirs] == [
        join(turn.answer, bos, eos) for turn in template.turns(conversation)
    ]
    assert [join(turn.prompt) for turn in theirs] == [
        join(turn.prompt, bos, eos) for turn in template.turns(conversation)
    ]


def test_only_the_last_answer_is_learned_when_the_history_is_masked():
    turns = read().turns(talk("a", "b", "c", "d"), is_history_masked=True)

    assert [turn.answer[0].is_learned for turn in turns] == [False, True]


def test_prompt_and_answer_are_those_of_the_turn():
    own = read()
    turn = own.turn(talk("a", "b", "c"), Message("assistant", "d"))

    assert turn.prompt == own.prompt(talk("a", "b", "c"))
    assert join(turn.answer) == "d<|im_end|>\n"


def test_thoughts_that_vanish_from_history_are_an_error_that_names_the_turn():
    with pytest.raises(TemplateError, match=r"turn 1 otherwise once turns follow") as caught:
        read(STRIPS_HISTORY).turns(talk("a", "<think>x</think>b", "c", "d"))

    assert "mask_history: true" in str(caught.value)
    assert "<think>" in str(caught.value)


def test_with_a_masked_history_vanishing_thoughts_are_no_error():
    (turn,) = read(STRIPS_HISTORY).turns(
        talk("a", "<think>x</think>b", "c", "d"), is_history_masked=True
    )

    assert "<think>" not in join(turn.prompt)
    assert join(turn.answer) == "d<|im_end|>\n"


def test_a_prompt_that_the_answer_does_not_continue_is_an_error():
    with pytest.raises(TemplateError, match="prompt of turn 1") as caught:
        read(OPENS_THOUGHTS).turns(talk("a", "b"))

    assert "assistant\\n<think>" in str(caught.value)


@pytest.mark.parametrize(
    ("chat_template", "what"),
    [
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "the question of turn 1"),
        (
            tiny.CHATML.replace("messages %}", "messages if message['role'] != 'system' %}"),
            "system",
        ),
        (tiny.CHATML, "tools"),
    ],
)
def test_what_a_chat_template_leaves_out_is_an_error(chat_template, what):
    tools = '[{"name": "find", "parameters": {}}]'

    with pytest.raises(TemplateError, match=f"leaves out .*{what}"):
        read(chat_template).turns(talk("Hi", "Hello", system="system text", tools=tools))


def test_a_chat_template_that_always_opens_an_answer_can_only_prompt():
    always = tiny.CHATML.replace("{% if add_generation_prompt %}", "").replace(
        "assistant\n{% endif %}", "assistant\n"
    )

    with pytest.raises(TemplateError, match="opens another answer"):
        read(always).turns(talk("a", "b"))
    assert join(read(always).prompt(talk("a"))).endswith("<|im_start|>assistant")


def test_a_refusal_is_passed_on_with_the_roles():
    with pytest.raises(TemplateError, match=r"roles user: no questions"):
        read("{{ raise_exception('no questions') }}", stop_words=("x",)).prompt(talk("Hi"))


def test_the_token_after_an_answer_is_a_stop_word_unless_it_is_eos():
    tokenizer = tiny.make_tokenizer()
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"

    assert ChatTemplate(tokenizer).stop_words == ()
    other.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
    assert ChatTemplate(other).stop_words == ("<|im_end|>",)


def test_switches_reach_the_chat_template():
    shows = tiny.CHATML + "{{ enable_thinking is defined }} {{ preserve_thinking is defined }}"

    assert join(read(shows).prompt(talk("Hi"))).endswith("False False")
    assert join(
        read(shows, enable_thinking=False, preserve_thinking=True).prompt(talk("Hi"))
    ).endswith("True True")


def test_a_fingerprint_follows_the_chat_template_and_survives_pickling():
    own = read()

    assert own.fingerprint() == pickle.loads(pickle.dumps(own)).fingerprint()
    assert own.fingerprint() != read(STRIPS_HISTORY).fingerprint()
    assert own.fingerprint() != read(default_system="S").fingerprint()


def test_the_first_difference_is_shown_from_both_sides():
    shown = first_difference("one two", "one too")

    assert shown.startswith("character 6:")
    assert "'one two'" in shown
    assert "'one too'" in shown


def says(content: str) -> str:
    """ChatML that writes this instead of a message's content."""
    return tiny.CHATML.replace("message['content']", content)


CALLS = "(message['tool_calls'][0]['function']{} if message['tool_calls'] else message['content'])"
THINKING = "(message['thinking'] ~ ': ' if message['thinking'] else '') ~ message['content']"
LEARNED = {
    "thought": talk("Hi", "<think>so</think>Hello"),
    "call": call_tools(CALL, tools=""),
    "text": call_tools(CALL, tools="", said="I look."),
}


@pytest.mark.parametrize(
    ("chat_template", "what", "conversation"),
    [
        (
            says("message['content'].split('</think>')[-1]"),
            "the thought of the answer of turn 1: 'so'",
            LEARNED["thought"],
        ),
        (tiny.CHATML, 'a call of turn 1: \'{"get_weather": ', LEARNED["call"]),
        (
            says(CALLS.format("")).replace(" %}", " if message['role'] != 'tool' %}", 1),
            "the tools' reply of turn 2: '{\"degrees\": 3}'",
            LEARNED["call"],
        ),
        (says(CALLS.format("")), "the text of the answer of turn 1: 'I look.'", LEARNED["text"]),
    ],
)
def test_what_is_learned_or_answered_and_left_out_is_an_error(chat_template, what, conversation):
    asked = dataclasses.replace(conversation, messages=conversation.messages[:-1])

    for is_history_masked in (False, True):
        with pytest.raises(TemplateError, match=f"leaves out {re.escape(what)}"):
            read(chat_template).turns(conversation, is_history_masked=is_history_masked)
    with pytest.raises(TemplateError, match=f"leaves out {re.escape(what)}"):
        read(chat_template).turn(asked, conversation.messages[-1])


@pytest.mark.parametrize("how", ["", " | tojson", " | string | tojson", "['name'] ~ message"])
def test_calls_are_found_however_they_are_written(how):
    assert len(read(says(CALLS.format(how))).turns(LEARNED["call"])) == 2


def test_a_thought_is_given_under_the_key_that_a_chat_template_reads():
    (turn,) = read(says(THINKING)).turns(LEARNED["thought"])

    assert join(turn.answer) == "so: Hello<|im_end|>\n"


def test_no_tools_are_not_handed_to_a_chat_template():
    shows = tiny.CHATML + "{{ tools is defined and tools is not none }}"

    assert join(read(shows).prompt(talk("Hi", tools="[]"))).endswith("False")
