"""messages as the OpenAI API takes them, tool calls and parts of content included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from luthier.data.check import RowError
from luthier.data.formats.fields import (
    as_list,
    as_object,
    as_text,
    check_order,
    dump,
    kind_of,
    optional_text,
    tools_of,
    weight_of_message,
    weight_of_row,
)
from luthier.data.formats.registry import FORMATS, Reading
from luthier.data.formats.sharegpt import messages_of, role_at, role_names
from luthier.records import Conversation, Message, Origin

THOUGHT = "<think>\n{}\n</think>\n\n"
"""How a reasoning part, or `reasoning_content`, stands before the answer it led to."""


@FORMATS.register("openai")
def read_openai(row: Mapping[str, Any], reading: Reading, origin: Origin | None) -> Conversation:
    """Messages with `tool_calls` become function messages; tool messages in a row become one.

    The roles system and developer both give the system text. Content may be a list of text parts.
    A thought (`reasoning_content`, or a part of type reasoning) stands before its answer. Text
    beside `tool_calls` that is no thought is not learned, and counted as a remark.

    Raises:
        RowError: if roles are unknown or out of order, a text is missing, or a part is no text.
    """
    description = reading.description
    tags, column = description.tags, description.columns.messages or "messages"
    if column == "messages" and column not in row and "conversations" in row:
        column = "conversations"
    given = messages_of(row, column, description.name)
    system = optional_text(row, description.columns.system)
    if given and tags.system_tag and given[0].get(tags.role_tag) in (tags.system_tag, "developer"):
        system, _ = _content(given[0], tags.content_tag, f"{column}[0]")
        given = given[1:]
    roles = role_names(tags)
    messages: list[Message] = []
    for number, message in enumerate(given):
        field = f"{column}[{number}]"
        role = role_at(message, field, tags, roles)
        content, thought = _content(message, tags.content_tag, field)
        if role in ("assistant", "function"):
            calls = _calls(message, tags.content_tag, field)
            if calls is not None:
                role = "function"
                thought = thought or (content if _is_thought(content) else "")
                if content and not _is_thought(content):
                    reading.remarks["text beside tool_calls is not learned"] += 1
                content = calls
            content = thought + content
        if role != "observation" and (not content or content.isspace()):
            raise RowError(f"{field}.{tags.content_tag}", "empty", "Write what was said.")
        if role == "observation" and messages and messages[-1].role == "observation":
            joined = messages[-1].content + reading.tool_separator + content
            messages[-1] = Message("observation", joined)
        else:
            messages.append(Message(role, content, weight_of_message(message, field)))
    shown = f"{tags.user_tag} or {tags.observation_tag}, then {tags.assistant_tag}"
    ordered = check_order(messages, column, needs_answer=reading.needs_answer, tags=shown)
    tools = tools_of(row, description)
    weight = weight_of_row(row, reading)
    return Conversation(tuple(ordered), system or None, tools, origin, weight)


def _content(message: Mapping[str, Any], tag: str, field: str) -> tuple[str, str]:
    """The text, and the thought before it; null and missing read as empty."""
    value = message.get(tag)
    texts: list[str] = []
    thoughts: list[str] = []
    reasoning = message.get("reasoning_content")
    if reasoning:
        thoughts.append(as_text(reasoning, f"{field}.reasoning_content"))
    if isinstance(value, list):
        for number, part in enumerate(value):
            kind, text = _part(part, f"{field}.{tag}[{number}]")
            if kind == "text":
                texts.append(text)
            elif kind == "reasoning":
                thoughts.append(text)
    elif value is not None:
        texts.append(as_text(value, f"{field}.{tag}"))
    thought = THOUGHT.format("\n".join(thoughts).strip("\n")) if any(thoughts) else ""
    return "".join(texts), thought


def _part(part: Any, field: str) -> tuple[str, str]:
    """A part's kind (text, reasoning, tool_call) and its text."""
    if isinstance(part, str):
        return "text", as_text(part, field)
    part = as_object(part, field)
    kind = part.get("type", "text")
    if kind == "tool_call":
        return kind, ""
    if kind not in ("text", "reasoning"):
        raise RowError(
            field,
            "a part that is no text",
            "Only text is read: take the part away.",
            f" ({kind!r})",
        )
    value = next((part[key] for key in ("text", "value") if part.get(key) is not None), None)
    return str(kind), as_text(value, field)


def _calls(message: Mapping[str, Any], tag: str, field: str) -> str | None:
    """The calls of a message, listed beside its content or in it, as JSON; None without any."""
    given, content = message.get("tool_calls"), message.get(tag)
    listed = as_list(given, f"{field}.tool_calls") if given else []
    calls = [_function(call, f"{field}.tool_calls[{at}]") for at, call in enumerate(listed)]
    for at, part in enumerate(content if isinstance(content, list) else []):
        if isinstance(part, Mapping) and part.get("type") == "tool_call":
            calls.append(_function(part.get("value"), f"{field}.{tag}[{at}]"))
    return dump(calls, field) if calls else None


def _function(call: Any, field: str) -> dict[str, Any]:
    """Name and arguments of one call; arguments written as JSON text are read."""
    call = as_object(call, field)
    function = as_object(call.get("function", call), f"{field}.function")
    name = as_text(function.get("name"), f"{field}.name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RowError(
                f"{field}.arguments", "text that is not JSON", 'Write them as {"name": value}.'
            ) from error
    if not isinstance(arguments, Mapping):
        raise RowError(
            f"{field}.arguments",
            f"{kind_of(arguments)} where an object belongs",
            'Write them as {"name": value}.',
        )
    return {"name": name, "arguments": arguments}


def _is_thought(content: str) -> bool:
    stripped = content.strip()
    return stripped.startswith("<think>") and stripped.endswith("</think>")
