"""conversations that every template has to render"""

from __future__ import annotations

import json

from luthier.records import Conversation, Message, Piece
from luthier.templates.template import Template, as_text

TOOLS = json.dumps(
    [
        {
            "name": "get_weather",
            "description": 'Says "what" the weather is — 天气',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "City", "enum": ["Paris", "北京"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
        {
            "type": "function",
            "function": {
                "name": "now",
                "parameters": {"type": "object", "properties": {}},
                "response": {"type": "object", "description": "The time"},
            },
        },
    ],
    ensure_ascii=False,
)
CALL = (
    '{"name": "get_weather", "arguments": {"city": "北京", "n": 2, "deep": {"a": [1, null, true]}}}'
)
TWO_CALLS = (
    '[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "now", "arguments": {}}]'
)


def talk(*contents: str, system: str | None = None, tools: str | None = None) -> Conversation:
    """Questions and answers in turn."""
    roles = ("user", "assistant")
    messages = (Message(roles[at % 2], content) for at, content in enumerate(contents))
    return Conversation(tuple(messages), system=system, tools=tools)


def call_tools(
    call: str, system: str | None = None, tools: str = TOOLS, said: str = ""
) -> Conversation:
    """A question, a call, what the tool answered, and the answer."""
    return Conversation(
        (
            Message("user", "How is it?"),
            Message("function", call, said=said),
            Message("observation", '{"degrees": 3}'),
            Message("assistant", "It is 3 degrees."),
        ),
        system=system,
        tools=tools,
    )


def conversations(template: Template) -> dict[str, Conversation]:
    """Each with a name; those that the template's tool format cannot write are left out."""
    opening, closing = template.thought_words
    thought = f"{opening}let me think{closing}"
    found = {
        "one turn": talk("Hi {{content}} there", "Hello {{content}}!\n"),
        "three turns": talk("Hi", "Hello", "and 'now' ", ' "this" \\n', "三", "四\n\n"),
        "a system text": talk("Hi", "Hello", system='Be "nice" {{content}}.'),
        "an empty system text": talk("Hi", "Hello", "Again", "Yes", system=""),
        "thoughts": talk("Hi", thought + "Hello", "Again", thought + "Yes"),
        "a thought first": talk("Hi", thought + "Hello", "Again", "Yes", system="S"),
        "a thought last": talk("Hi", "Hello", "Again", thought + "Yes"),
        "two thoughts": talk(
            "Hi", thought + thought + "Hello" + thought, "Again", thought + "\nYes"
        ),
        "bare tags": talk(
            "Hi", "<think> let me think\r\n</think>Hello", "Again", "so\n</think>\nYes", "And", "No"
        ),
        "half a thought": talk("Hi", opening + "Hello", "Again", "Yes" + closing),
        "tools": call_tools(CALL),
        "tools and a system text": call_tools(CALL, system="S"),
        "a thought before a call": call_tools(thought + CALL, system="S"),
        "a bare thought before a call": call_tools("<think>so</think>" + CALL),
        "text before a call": call_tools(CALL, said="I look.\n"),
        "a thought and text before a call": call_tools(CALL, said="<think>so</think>\n I look."),
        "calls for two questions": Conversation(
            (
                *call_tools(thought + CALL).messages,
                Message("user", "And tomorrow?"),
                *call_tools(CALL, said=thought + "I look again.").messages[1:3],
                Message("function", "so</think>" + CALL),
                Message("observation", "all"),
                Message("assistant", thought + "It is warm."),
            ),
            tools=TOOLS,
        ),
        "no tools": talk("Hi", "Hello", system="S", tools="[]"),
        "no tools and no system text": talk("Hi", "Hello", tools="[]"),
    }
    if template.tool_format != "glm4":
        found["two calls"] = call_tools(TWO_CALLS)
    return found


def join(pieces: list[Piece] | tuple[Piece, ...], bos: str = "<s>", eos: str = "</s>") -> str:
    """The text of the pieces."""
    return "".join(as_text(piece.content, bos, eos) for piece in pieces)
