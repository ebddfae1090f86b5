from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest

from luthier.records import Conversation, Message
from luthier.templates.answer_stream import (
    AnswerStream,
    CallBegins,
    CallGoesOn,
    Said,
    Thought,
    call_form,
    extract_calls,
    opens_thought,
)
from luthier.templates.chat_template import ChatTemplate, Renders
from luthier.templates.template import TEMPLATES
from luthier.templates.tool_format import TOOL_FORMATS, FunctionCall, dump
from tests import tiny

CALLS = [
    FunctionCall("find", {"text": 'a "quoted" word\n{x}', "many": [1, {"deep": None}], "on": True}),
    FunctionCall("sing", {"song": "täglich 歌"}),
]
ONE_FOR_EACH = sorted(
    {TEMPLATES.get(name).tool_format: name for name in TEMPLATES.names()}.values()
)
HERMES = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.reasoning_content %}{{- '<think>\n' + message.reasoning_content + "
    "'\n</think>\n\n' }}{% endif %}{{- message.content }}"
    "{%- for call in message.tool_calls or [] %}{%- set call = call.function %}"
    '{{- \'\n<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' + '
    "(call.arguments | tojson) + '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"
)


def read(template: Renders, pieces: list[str], **options: object) -> dict[str, object]:
    stream = AnswerStream(template, reads_calls=True, tool_names=("find", "sing"), **options)
    parts = [part for piece in pieces for part in stream.push(piece)] + stream.end()
    calls: list[list[str]] = []
    for part in parts:
        if isinstance(part, CallBegins):
            assert part.index == len(calls)
            calls.append([part.name, ""])
        elif isinstance(part, CallGoesOn):
            calls[part.index][1] += part.arguments
    return {
        "thought": "".join(part.text for part in parts if isinstance(part, Thought)),
        "said": "".join(part.text for part in parts if isinstance(part, Said)),
        "calls": [(name, json.loads(arguments)) for name, arguments in calls],
    }


def cuts(text: str, seed: int) -> list[str]:
    places = sorted(random.Random(seed).choices(range(len(text) + 1), k=12))
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


@pytest.mark.parametrize("name", ONE_FOR_EACH)
@pytest.mark.parametrize("thought", ["", "First\n\nthis <b>."])
def test_what_a_template_writes_is_read_back_however_it_comes(name: str, thought: str) -> None:
    template = TEMPLATES.get(name)
    tool_format = template.tools
    # lfm2 writes no quotes in a text
    calls = CALLS[1:] if tool_format.one_call or template.tool_format == "lfm2" else CALLS
    opening, closing = template.thought_words
    written = "".join(template.written_calls(calls))
    answer = (f"{opening}{thought}{closing}" if thought else "") + written

    expected = {
        "thought": thought,
        "said": "",
        "calls": [(call.name, call.arguments) for call in tool_format.extract_calls(written)],
    }

    assert len(expected["calls"]) == len(calls)
    for seed in range(8):
        assert read(template, cuts(answer, seed)) == expected
    assert read(template, list(answer)) == expected


@pytest.mark.parametrize("name", ONE_FOR_EACH)
def test_text_stays_text_and_stands_before_the_calls(name: str) -> None:
    template = TEMPLATES.get(name)
    text = "A <b>bold</b> claim, in {braces}\n  and lines."

    assert read(template, list(text)) == {"thought": "", "said": text, "calls": []}
    if template.takes_text_beside_calls:
        answer = text + "\n" + template.written_calls(CALLS[1:])
        found = read(template, list(answer))
        assert found["said"] == text
        assert found["calls"] == [("sing", {"song": "täglich 歌"})]


def test_arguments_come_while_they_are_written() -> None:
    stream = AnswerStream(TEMPLATES.get("qwen3"), reads_calls=True)

    begun = stream.push('Let me.\n<tool_call>\n{"name": "find", "arguments": {"te')
    more = stream.push('xt": "a}"')

    assert begun == [Said("Let me."), CallBegins(0, "find"), CallGoesOn(0, '{"te')]
    assert more == [CallGoesOn(0, 'xt": "a}"')]
    assert stream.push("}}\n</tool_call>") == [CallGoesOn(0, "}")]
    assert stream.end() == []


def test_what_only_looks_like_a_call_is_shown() -> None:
    answer = 'So:\n<tool_call>\n{"name": 5}\n</tool_call> is wrong.'

    assert read(TEMPLATES.get("qwen"), list(answer))["said"] == answer
    assert extract_calls(TEMPLATES.get("qwen"), answer) == (answer, [])


def test_text_behind_a_call_is_not_lost() -> None:
    written = TEMPLATES.get("qwen").written_calls(CALLS[1:])

    found = read(TEMPLATES.get("qwen"), list(f"{written}\nDone."))

    assert found == {"thought": "", "said": "Done.", "calls": [("sing", {"song": "täglich 歌"})]}


def test_a_thought_may_be_open_from_the_prompt_on() -> None:
    template = TEMPLATES.get("qwen3")

    assert opens_thought(template, "<|im_start|>assistant\n<think>\n")
    assert not opens_thought(template, "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    found = read(template, list("Hm, yes.\n</think>\n\nSure."), is_thinking=True)
    assert found == {"thought": "Hm, yes.", "said": "Sure.", "calls": []}


def test_without_tools_calls_are_text() -> None:
    text = TEMPLATES.get("qwen").written_calls(CALLS)
    stream = AnswerStream(TEMPLATES.get("qwen"))

    assert stream.push(text) == [Said(text)]


def test_a_chat_template_tells_its_form_of_calls_and_thoughts() -> None:
    template = ChatTemplate(tiny.make_tokenizer(chat_template=HERMES))

    form = call_form(template)

    assert form is not None
    assert form.tool_format.render_calls(CALLS) == TOOL_FORMATS.get("qwen").render_calls(CALLS)
    assert (form.marker, form.is_json) == ("<tool_call>", True)
    assert template.thought_words == ("<think>", "</think>")
    answer = "<think>\nHm.\n</think>\n\nOne moment.\n" + template.written_calls(CALLS)
    assert read(template, list(answer)) == {
        "thought": "Hm.",
        "said": "One moment.",
        "calls": [(call.name, call.arguments) for call in CALLS],
    }


def test_a_chat_template_without_calls_reads_none() -> None:
    template = ChatTemplate(tiny.make_tokenizer())

    assert call_form(template) is None
    assert read(template, ['<tool_call>\n{"name": "x", "arguments": {}}\n</tool_call>'])["said"]


def test_what_training_shows_of_calls_is_read_back() -> None:
    template = TEMPLATES.get("qwen3")
    calls = Message("function", dump([{"name": "find", "arguments": CALLS[0].arguments}]))

    answer = template.turn(Conversation((Message("user", "Find it."),)), calls).answer

    text = "".join(piece.content for piece in answer if isinstance(piece.content, str))
    assert extract_calls(template, text.removesuffix("<|im_end|>\n")) == ("", CALLS[:1])
