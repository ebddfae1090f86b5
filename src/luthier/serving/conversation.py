"""The messages of a request -> a conversation, read as training reads its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from luthier.data.catalog import FORMATS, OPENAI_COLUMNS, OPENAI_TAGS, DatasetDescription, Reading
from luthier.data.check import RowError
from luthier.records import Conversation
from luthier.serving.forms import (
    Assistant,
    ChatMessage,
    Content,
    InputCall,
    InputMessage,
    InputReasoning,
    Item,
    System,
    Tool,
    ToolReply,
    User,
)
from luthier.serving.problems import Refused
from luthier.stages.conversing import find_tool_turns
from luthier.templates.chat_template import Renders

BETWEEN = "\n\n"
"""What stands between the texts of system or user messages that follow each other."""

_REQUEST = DatasetDescription(
    "the request",
    "file",
    "",
    "openai",
    columns=replace(OPENAI_COLUMNS, tools="tools"),
    tags=OPENAI_TAGS,
)


def read_conversation(
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    template: Renders,
    *,
    has_answer: bool = False,
) -> Conversation:
    """The conversation that ends with a question or a tool's reply, or with an answer to it.

    System and developer messages at the beginning are one text, and so are user messages that
    follow each other. Replies of tools stand in the order of their calls.

    Raises:
        Refused: with the message that is out of order, or cannot be written.
    """
    if has_answer and not isinstance(messages[-1], Assistant):
        raise Refused(
            f"messages[{len(messages) - 1}].role: an answer is scored, so the last message is the "
            "assistant's",
            param="messages",
        )
    if not has_answer and not isinstance(messages[-1], User | ToolReply):
        raise Refused(
            f"messages[{len(messages) - 1}].role: the last message is the assistant's or the "
            "system's; the model answers a user's or a tool's",
            param="messages",
        )
    rows: list[dict[str, Any]] = []
    calls: list[str] = []  # ids that wait for their replies
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if isinstance(message, ToolReply):
            if message.tool_call_id not in calls:
                raise Refused(
                    f"{place}.tool_call_id: no call of the message before has the id "
                    f"{message.tool_call_id!r}, or it was answered already",
                    param=f"{place}.tool_call_id",
                )
            first = len(rows) - next(at for at, row in enumerate(rows[::-1]) if "order" not in row)
            order = calls.index(message.tool_call_id)
            rows.append({"role": "tool", "content": _text(message.content), "order": order})
            rows[first:] = sorted(rows[first:], key=lambda row: row["order"])
            calls[order] = ""
            continue
        if any(calls):
            raise Refused(
                f"{place}: the call {next(filter(None, calls))!r} has no reply of role tool yet",
                param=place,
            )
        content = _text(message.content)
        calls = []
        if isinstance(message, Assistant):
            row: dict[str, Any] = {"role": "assistant", "content": content}
            if message.tool_calls:
                row["tool_calls"] = [one.model_dump() for one in message.tool_calls]
                calls = [one.id for one in message.tool_calls]
            if message.reasoning_content:
                row["reasoning_content"] = message.reasoning_content
            rows.append(row)
            continue
        role = "system" if isinstance(message, System) else "user"
        if rows and rows[-1]["role"] == role:
            rows[-1]["content"] += BETWEEN + content
        else:
            rows.append({"role": role, "content": content})
    row = {"messages": [{k: v for k, v in one.items() if k != "order"} for one in rows]}
    if tools:
        row["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
        for tool in row["tools"]:
            tool["function"].pop("strict", None)
    reading = Reading(_REQUEST, needs_answer=has_answer, tool_turns=find_tool_turns(template))
    try:
        conversation = FORMATS.get("openai")(row, reading, None)
    except RowError as problem:
        raise Refused(f"{problem}", param=problem.field or "messages") from problem
    if reading.remarks:
        raise Refused(f"messages: {next(iter(reading.remarks))}", param="messages")
    if has_answer:
        return conversation
    # the reader has added the answer that is to come
    return replace(conversation, messages=conversation.messages[:-1])


def read_items(instructions: str | None, items: str | Sequence[Item]) -> list[ChatMessage]:
    """The items of a response's input as messages; calls join the answer that made them."""
    messages: list[ChatMessage] = []
    if instructions:
        messages.append(System(role="system", content=instructions))
    if isinstance(items, str):
        return [*messages, User(role="user", content=items)]
    for item in items:
        before = messages[-1] if messages else None
        answer = before if isinstance(before, Assistant) else Assistant(role="assistant")
        if isinstance(item, InputReasoning):
            thought = "\n".join(part.text for part in item.content)
            messages.append(Assistant(role="assistant", reasoning_content=thought))
        elif isinstance(item, InputCall):
            call = {"name": item.name, "arguments": item.arguments}
            calls = [*answer.tool_calls, {"id": item.call_id, "function": call}]
            _put_last(messages, answer, tool_calls=calls)
        elif isinstance(item, InputMessage):
            if item.role == "assistant":
                text = _text(answer.content) + _text(item.content)
                _put_last(messages, answer, content=text)
            elif item.role == "user":
                messages.append(User(role="user", content=item.content))
            else:
                messages.append(System(role=item.role, content=item.content))
        else:
            messages.append(ToolReply(role="tool", content=item.output, tool_call_id=item.call_id))
    return messages


def _put_last(messages: list[ChatMessage], answer: Assistant, **changes: Any) -> None:
    if messages and messages[-1] is answer:
        messages.pop()
    given = answer.model_dump(exclude_none=True) | changes
    messages.append(Assistant.model_validate(given))


def _text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)
