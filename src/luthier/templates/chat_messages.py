"""Our conversations as the messages that chat templates read."""

from __future__ import annotations

from typing import Any

from luthier.records import Conversation, Message
from luthier.templates.thinking import COMMON_WORDS
from luthier.templates.tool_format import parse_tools, read_calls, split_calls

ChatMessage = dict[str, Any]


def as_chat(
    conversation: Conversation,
    thought_words: tuple[str, str] = COMMON_WORDS,
    tool_call_words: tuple[str, str] = ("<tool_call>", "</tool_call>"),
) -> list[ChatMessage]:
    """The system text and the messages, roles and tool calls named as `transformers` names them.

    Args:
        conversation: what is rendered.
        thought_words: what surrounds a thought in a function message.
        tool_call_words: what surrounds calls in a function message that also holds text.

    Raises:
        TemplateError: if a function message cannot be read.
    """
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return system + [
        _as_chat_message(message, thought_words, tool_call_words)
        for message in conversation.messages
    ]


def as_chat_tools(tools: str | None) -> list[dict[str, Any]] | None:
    """The tool descriptions for `apply_chat_template`; None when there are none."""
    return parse_tools(tools) if tools else None


def _as_chat_message(
    message: Message, thought_words: tuple[str, str], tool_call_words: tuple[str, str]
) -> ChatMessage:
    if message.role == "function":
        message = split_calls(message, thought_words, tool_call_words)
        calls = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in read_calls(message)
        ]
        return {"role": "assistant", "content": message.said, "tool_calls": calls}
    role = "tool" if message.role == "observation" else message.role
    return {"role": role, "content": message.content}
