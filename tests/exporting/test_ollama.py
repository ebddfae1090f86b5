"""Ollama sends the tokens that were trained: the template in Go's language, rendered here"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from luthier.errors import TemplateError
from luthier.exporting.ollama import _describe, find_template, go_template
from luthier.records import Conversation, Message
from luthier.templates.chat_template import ChatTemplate
from luthier.templates.fit import find_template as registered
from luthier.templates.template import TEMPLATES, Template, as_text
from tests import tiny
from tests.exporting.go_template import render
from tests.exporting.making import export_of, make_run

TOOL = {
    "type": "function",
    "function": {
        "name": "find_wood",
        "description": "Finds <wood> & more.",
        "parameters": {"type": "object", "properties": {"kind": {"type": "string"}}},
    },
}
CALL = {"name": "find_wood", "arguments": {"kind": "Ahorn ½", "many": [1, 2]}}
SECOND = {"name": "find_wood", "arguments": {}}


def user(text: str) -> Message:
    return Message("user", text)


def calling(*calls: dict[str, Any]) -> Message:
    return Message("function", json.dumps([*calls]))


CONVERSATIONS = {
    "a system text": Conversation((user("Who are you?"),), system="Be brief."),
    "several turns": Conversation(
        (user("One"), Message("assistant", "1"), user("Two"), Message("assistant", "2"), user("3"))
    ),
    "tools": Conversation(
        (user("Which wood?"), calling(CALL), Message("observation", "maple")),
        system="Help.",
        tools=json.dumps([TOOL, TOOL]),
    ),
    "several calls": Conversation(
        (
            user("Woods?"),
            calling(CALL, SECOND),
            Message("observation", "maple"),
            Message("assistant", "Maple."),
            user("And?"),
        ),
        tools=json.dumps([TOOL]),
    ),
    "thoughts": Conversation(
        (user("Hm?"), Message("assistant", "<think>\nlong\n</think>\n\nyes"), user("Sure?"))
    ),
    "an empty system text": Conversation((user("Hi"),), system=""),
    "letters of all kinds": Conversation(
        (
            user('第三 é {{ .Content }} """ <b> \\n ½ 😀'),
            Message("assistant", "{ {{x}} }"),
            user("ok"),
        )
    ),
}


def as_ollama(conversation: Conversation, template: Template) -> dict[str, Any]:
    """The conversation in the words of Ollama's API."""
    messages: list[dict[str, Any]] = []
    if conversation.system is not None:
        messages.append({"Role": "system", "Content": conversation.system})
    for message in conversation.messages:
        if message.role == "function":
            calls = [
                {"Function": {"Name": each["name"], "Arguments": each["arguments"]}}
                for each in json.loads(message.content)
            ]
            messages.append({"Role": "assistant", "ToolCalls": calls})
        elif message.role == "observation":
            messages.append({"Role": "tool", "Content": message.content})
        else:
            said: dict[str, Any] = {"Role": message.role, "Content": message.content}
            if template.is_reasoning and message.content.startswith("<think>"):
                thought, _, text = message.content.partition("\n</think>\n\n")
                said |= {"Thinking": thought.removeprefix("<think>\n"), "Content": text}
            elif message.content.startswith("<think>"):  # text like any other
                said["Content"] = message.content.replace(
                    "<think>\n", template.thought_words[0]
                ).replace("\n</think>\n\n", template.thought_words[1])
            messages.append(said)
    tools = [
        {"Function": Function(each["function"]), "type": "function", "function": each["function"]}
        for each in json.loads(conversation.tools or "[]")
    ]
    return {"Messages": messages, "Tools": tools}


class Function(dict[str, Any]):
    """A tool's description, whose name templates ask for as `.Name`."""

    def __missing__(self, name: str) -> Any:
        return self[name.lower()]


def trained(conversation: Conversation, template: Template, tokenizer: Any) -> str:
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    pieces = template.prompt(conversation)
    return "".join(as_text(piece.content, bos, eos) for piece in pieces)


def spaceless(text: str) -> str:
    """A text with every JSON value in it written in one way: Go writes no spaces."""
    decoder, parts, at = json.JSONDecoder(), [], 0
    while at < len(text):
        if text[at] in "{[":
            try:
                value, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError:
                pass
            else:
                for each in value if isinstance(value, list) else [value]:
                    if isinstance(each, dict):
                        each.pop("Function", None)
                parts.append(json.dumps(value, sort_keys=True))
                continue
        parts.append(text[at])
        at += 1
    return "".join(parts)


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_every_template_reads_as_it_was_trained(name: str):
    template, tokenizer = registered(name), tiny.make_tokenizer()

    source = go_template(template, tokenizer)

    tells_tools = ".Tools" in source
    for kind, conversation in CONVERSATIONS.items():
        if conversation.tools and not tells_tools:
            continue
        try:
            expected = trained(conversation, template, tokenizer)
        except TemplateError:
            continue  # what the template itself refuses
        ours = render(source, **as_ollama(conversation, template))
        assert spaceless(ours) == spaceless(expected), kind


@pytest.mark.parametrize("name", ["qwen3", "chatml", "gemma", "mistral", "llama3"])
def test_the_tokens_are_the_trained_ones(name: str):
    template, tokenizer = registered(name), tiny.make_tokenizer()

    source = go_template(template, tokenizer)

    for kind, conversation in CONVERSATIONS.items():
        if conversation.tools is None:
            expected = tokenizer(trained(conversation, template, tokenizer))["input_ids"]
            ours = tokenizer(render(source, **as_ollama(conversation, template)))["input_ids"]
            assert ours == expected, kind


@pytest.mark.parametrize("name", ["llama2", "llama3", "mistral", "gemma", "qwen"])
def test_a_beginning_that_the_tokenizer_sets_is_left_to_it(name: str):
    template, tokenizer = registered(name), tiny.make_sentencepiece()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )

    source = go_template(template, tokenizer)

    for kind in ("several turns", "a system text"):
        expected = trained(CONVERSATIONS[kind], template, tokenizer)
        ours = render(source, **as_ollama(CONVERSATIONS[kind], template))
        assert ours == expected.removeprefix("<s>"), kind
        assert name == "qwen" or expected.startswith("<s>")


def test_calls_are_marked_where_ollama_looks_for_the_mark():
    source = go_template(registered("qwen3"), tiny.make_tokenizer())

    behind = re.sub(r"{{.*?}}", "", source.partition("{{ if .ToolCalls }}")[2])

    assert behind.lstrip().startswith("<tool_call>")


def test_thinking_is_switched_as_ollama_switches_it():
    template, tokenizer = registered("qwen3"), tiny.make_tokenizer()
    source = go_template(template, tokenizer)
    asked = as_ollama(CONVERSATIONS["thoughts"], template)

    off = render(source, **asked, IsThinkSet=True, Think=False)
    on = render(source, **asked, IsThinkSet=True, Think=True)

    assert off == on + template.empty_thought
    assert "long" not in on


def test_most_formats_of_tools_are_told():
    told = {name for name in TEMPLATES.names() if _describe(registered(name).tools) is not None}

    assert {"qwen", "qwen3", "llama3", "mistral", "glm4"} <= told


def test_a_chat_template_is_known_by_what_it_writes():
    template = registered("chatml")
    tokenizer = tiny.make_tokenizer()

    found = find_template(ChatTemplate(tokenizer), tokenizer)

    assert (found.user, found.assistant) == (template.user, template.assistant)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(TemplateError, match="cannot be written in Go's language"):
        find_template(ChatTemplate(tokenizer), tokenizer)


def test_a_run_becomes_a_modelfile(tmp_path: Path, llama_folder: Path):
    pytest.importorskip("gguf")
    run = make_run(tmp_path / "run", llama_folder)

    folder = export_of(run, tmp_path / "mine", gguf="q8_0", ollama=True)

    text = (folder / "Modelfile").read_text()
    assert "FROM ./mine-q8_0.gguf\n" in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert "PARAMETER num_ctx 512\n" in text
    source = text.partition('TEMPLATE """')[2].partition('"""')[0]
    asked = render(source, Messages=[{"Role": "user", "Content": "Hi"}])
    assert asked == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
