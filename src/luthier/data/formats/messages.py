"""conversations of messages: who speaks, what is said and called; sharegpt and openai alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from luthier.data.catalog import FORMATS, Reading, Tags
from luthier.data.check import RowError
from luthier.data.formats.fields import (
    as_list,
    as_object,
    as_text,
    dump,
    kind_of,
    optional_text,
    text_at,
    tools_of,
    weight_of_message,
    weight_of_row,
)
from luthier.errors import suggest
from luthier.records import Conversation, Message, Origin, Role
from luthier.templates.thinking import COMMON_WORDS, split_thought

THOUGHT = "<think>\n{}\n</think>\n\n"
"""How a thought with a key or a part of its own stands before the answer it led to."""

THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
CALL_KEYS = ("tool_calls", "function_call")
KEYS = (*THOUGHT_KEYS, *CALL_KEYS, "train", "weight", "loss")
"""What is read of a message beside its two tags."""


@FORMATS.register("sharegpt", "openai")
def read_messages(row: Mapping[str, Any], reading: Reading, origin: Origin | None) -> Conversation:
    """The messages in turn; a first one with the system tag wins over the system column.

    The role developer is that of the system, too. Content may be a list of parts of text. A thought
    (a key of `THOUGHT_KEYS`, or a part of type reasoning) stands before its answer. A message with
    `tool_calls` is one of role function. What tools answered in a row becomes one message, and so
    do calls. Text beside calls is counted as a remark where it cannot be written.

    Raises:
        RowError: if roles are unknown or out of order, a text is missing or empty, or a part is no
            text.
    """
    description = reading.description
    tags, column = description.tags, description.columns.messages or "messages"
    if description.formatting == "openai" and column == "messages" and column not in row:
        column = "conversations" if "conversations" in row else column
    if row.get(column) is None:
        raise RowError(
            column,
            "null" if column in row else "missing",
            'Write the messages there, or name their column as "messages" in "columns" of '
            f"{description.name!r}.",
            f" (there are: {', '.join(map(repr, list(row)[:8]))})",
        )
    listed = as_list(row[column], column)
    given = [as_object(one, f"{column}[{number}]") for number, one in enumerate(listed)]
    system = optional_text(row, description.columns.system)
    first = 0
    if given and tags.system_tag and given[0].get(tags.role_tag) in (tags.system_tag, "developer"):
        system, first = _read_content(given[0], tags.content_tag, f"{column}[0]").text, 1
    messages: list[Message] = []
    numbers: list[int] = []
    for number, one in enumerate(given[first:], first):
        field = f"{column}[{number}]"
        read = _read_message(one, field, reading)
        if messages and read.role in ("observation", "function") and messages[-1].role == read.role:
            messages[-1] = _join(messages[-1], read, field, reading.tool_turns.separator)
        else:
            messages.append(read)
            numbers.append(number)
    said = (
        f"({tags.user_tag} or {tags.observation_tag}, then {tags.assistant_tag} or "
        f"{tags.function_tag})."
    )
    expected = (("user", "observation"), ("assistant", "function"))
    for at, message in enumerate(messages):
        if message.role not in expected[at % 2]:
            fix = f"Questions and answers take turns, a question first {said}"
            reason = f"role {message.role} out of order"
            raise RowError(f"{column}[{numbers[at]}]", reason, fix)
    if not messages:
        raise RowError(column, "no messages", "Give a question and an answer.")
    if len(messages) % 2:
        if reading.needs_answer:
            raise RowError(column, "no answer at the end", f"The last message answers {said}")
        messages.append(Message("assistant", ""))
    tools, weight = tools_of(row, description), weight_of_row(row, reading)
    return Conversation(tuple(messages), system or None, tools, origin, weight)


def _read_message(message: Mapping[str, Any], field: str, reading: Reading) -> Message:
    tags = reading.description.tags
    role = _role_at(message, field, tags)
    content = _read_content(message, tags.content_tag, field)
    calls = [*_listed_calls(message, field), *content.calls]
    weight = weight_of_message(message, field)
    if role in ("user", "observation"):
        if calls:
            fix = f"Let a message of role {tags.assistant_tag} hold them."
            raise RowError(f"{field}.tool_calls", "calls in a message that is no answer", fix)
        if role == "user" or tags.content_tag not in message:
            _check_said(message, content.text, tags.content_tag, field)
        return Message(role, content.text, weight)
    thought = _find_thought(message, content, field, reading)
    if not calls:
        _check_said(message, thought + content.text, tags.content_tag, field)
        if role == "function":
            return Message(role, content.text, weight, said=thought)
        return Message(role, thought + content.text, weight)
    text = content.text
    if not reading.tool_turns.takes_text and split_thought(text, COMMON_WORDS)[1].strip():
        reading.remarks["text beside tool_calls is not learned"] += 1
        text = text.removesuffix(split_thought(text, COMMON_WORDS)[1])
    return Message("function", dump(calls, field), weight, said=thought + text)


def _role_at(message: Mapping[str, Any], field: str, tags: Tags) -> Role:
    roles: dict[str, Role] = {
        tags.user_tag: "user",
        tags.assistant_tag: "assistant",
        tags.observation_tag: "observation",
        tags.function_tag: "function",
    }
    said = text_at(message, tags.role_tag, f"{field}.{tags.role_tag}", "Say who speaks.")
    if said in roles:
        return roles[said]
    if said == tags.system_tag:
        raise RowError(field, "a system text in the middle", "It may only come first.")
    raise RowError(
        f"{field}.{tags.role_tag}",
        "an unknown role",
        f'Name it in "tags" of the data set.{suggest(said, roles)}',
        f" ({said[:40]!r})",
    )


_KINDS = {"thinking": "reasoning", "input_text": "text", "output_text": "text"}
"""Other names of the kinds of a content's parts."""


class _Content(NamedTuple):
    """What the content of a message holds."""

    text: str
    thoughts: list[str]
    calls: list[dict[str, Any]]


def _read_content(message: Mapping[str, Any], tag: str, field: str) -> _Content:
    """Text, thoughts and calls; null and missing read as empty."""
    value, field = message.get(tag), f"{field}.{tag}"
    if not isinstance(value, list):
        return _Content("" if value is None else as_text(value, field), [], [])
    found: dict[str, list[Any]] = {"text": [], "reasoning": [], "tool_call": []}
    for number, part in enumerate(value):
        place = f"{field}[{number}]"
        if isinstance(part, str):
            part = {"text": part}
        part = as_object(part, place)
        kind = str(part.get("type", "text"))
        kind = _KINDS.get(kind, kind)
        if kind == "tool_call":
            found[kind].append(_read_call(part.get("value"), place))
            continue
        if kind not in found:
            fix = "Only text is read: take the part away."
            raise RowError(place, "a part that is no text", fix, f" ({kind!r})")
        keys = ("text", "value", "thinking")
        text = next((part[key] for key in keys if part.get(key) is not None), None)
        found[kind].append(as_text(text, place))
    return _Content("".join(found["text"]), found["reasoning"], found["tool_call"])


def _find_thought(
    message: Mapping[str, Any], content: _Content, field: str, reading: Reading
) -> str:
    """The thought before an answer that stands apart from its text, in its usual form."""
    thoughts = []
    for key in THOUGHT_KEYS:
        value = message.get(key)
        if isinstance(value, str):
            thoughts.append(as_text(value, f"{field}.{key}"))
        elif value is not None:
            reading.remarks[f"{key!r} of a message is not read: it is no text"] += 1
    thoughts = [thought for thought in dict.fromkeys(thoughts) if thought] + content.thoughts
    thought = "\n".join(thoughts).strip("\n")
    if not any(thoughts) or thought.strip() == (split_thought(content.text, COMMON_WORDS)[0] or ""):
        return ""
    return THOUGHT.format(thought)


def _check_said(message: Mapping[str, Any], said: str, tag: str, field: str) -> None:
    """Refuses a message that says nothing."""
    if not said or said.isspace():
        value = message.get(tag)
        given = {tag: "" if isinstance(value, list) else value} if tag in message else message
        text_at(given, tag, f"{field}.{tag}", "Write what was said.")


def _listed_calls(message: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    """The calls beside the content: a list of them, or one."""
    if given := message.get("tool_calls"):
        listed = as_list(given, f"{field}.tool_calls")
        return [_read_call(call, f"{field}.tool_calls[{at}]") for at, call in enumerate(listed)]
    if given := message.get("function_call"):
        return [_read_call(given, f"{field}.function_call")]
    return []


def _read_call(call: Any, field: str) -> dict[str, Any]:
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
        reason = f"{kind_of(arguments)} where an object belongs"
        raise RowError(f"{field}.arguments", reason, 'Write them as {"name": value}.')
    return {"name": name, "arguments": arguments}


def _join(first: Message, second: Message, field: str, separator: str) -> Message:
    if first.weight != second.weight:
        fix = "Give messages that follow each other in one role the same weight."
        raise RowError(field, "another weight than the message it continues", fix)
    if first.role == "observation":
        return replace(first, content=first.content + separator + second.content)
    try:
        calls = [json.loads(first.content), json.loads(second.content)]
    except (ValueError, RecursionError):
        calls = []
    if not calls or second.said:
        fix = 'Write the calls of one turn into one message: [{"name": ...}, {"name": ...}].'
        raise RowError(field, "calls that continue those of the message before", fix)
    listed = [call for one in calls for call in (one if isinstance(one, list) else [one])]
    return replace(first, content=dump(listed, field))
