"""Our conversations as the messages that chat templates read."""

from __future__ import annotations

from typing import Any

from luthier.records import Conversation
from luthier.templates.thinking import COMMON_WORDS, split_thought, spoken
from luthier.templates.tool_format import TOOL_CALL_WORDS, parse_tools, read_calls, split_calls

ChatMessage = dict[str, Any]


def as_chat(
    conversation: Conversation,
    thought_words: tuple[str, str] = COMMON_WORDS,
    tool_call_words: tuple[str, str] = TOOL_CALL_WORDS,
    thought_key: str | None = None,
) -> list[ChatMessage]:
    """The system text and the messages, roles and tool calls named as `transformers` names them.

    Args:
        conversation: what is rendered.
        thought_words: what surrounds a thought.
        tool_call_words: what surrounds calls in a function message that also holds text.
        thought_key: where a message's thought stands on its own; None to leave it in the text.

    Raises:
        TemplateError: if a function message cannot be read.
    """
    shown = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for message in conversation.messages:
        if message.role == "function":
            message = split_calls(message, thought_words, tool_call_words)
        role = _ROLES.get(message.role, message.role)
        chat: ChatMessage = {"role": role, "content": spoken(message)}
        if message.role == "function":
            chat["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in read_calls(message)
            ]
        if thought_key and role == "assistant":
            thought, text = split_thought(chat["content"], thought_words)
            chat |= {thought_key: thought, "content": text} if thought else {}
        shown.append(chat)
    return shown


_ROLES = {"observation": "tool", "function": "assistant"}


def as_chat_tools(tools: str | None) -> list[dict[str, Any]] | None:
    """The tool descriptions for `apply_chat_template`; None when there are none."""
    return parse_tools(tools) if tools else None
