"""tools as JSON lines in the system text, calls as JSON between tool_call tags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.templates.slots import quote
from luthier.templates.tool_format import (
    TOOL_FORMATS,
    FunctionCall,
    ToolFormat,
    dump,
    read_objects,
    wrapped,
)

_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_CALL = re.compile(r"<tool_call>(.+?)</tool_call>", re.DOTALL)


def list_tools_jinja(before: str, after: str) -> str:
    """Jinja that prints the tools as JSON, each on a line of its own, between two texts."""
    return (
        "{{- " + quote(before) + " }}"
        "{%- for tool in tools %}"
        '{{- "\\n" ~ ((tool if tool["type"] == "function" else'
        ' {"type": "function", "function": tool}) | tojson) }}'
        "{%- endfor %}"
        "{{- " + quote(after) + " }}"
    )


class QwenTools(ToolFormat):
    """The format of Qwen 2.5 and 3, after Hermes."""

    before: ClassVar[str] = "\n\n" + _HEAD
    after: ClassVar[str] = _TAIL
    tools_jinja = list_tools_jinja(before, after)
    calls_jinja = (
        "{%- for call in calls %}"
        '{%- set arguments = call["arguments"] %}'
        '{{- "<tool_call>\\n{\\"name\\": " ~ (call["name"] | tojson) ~ ", \\"arguments\\": " ~'
        ' (arguments if arguments is string else arguments | tojson) ~ "}\\n</tool_call>" }}'
        '{{- "" if loop.last else "\\n" }}'
        "{%- endfor %}"
    )

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """The tools between the texts of this format."""
        listed = "".join("\n" + dump(wrapped(tool)) for tool in tools)
        return self.before + listed + self.after

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """A tagged JSON object for each call."""
        return "\n".join(
            "<tool_call>\n"
            + dump({"name": call.name, "arguments": call.arguments})
            + "\n</tool_call>"
            for call in calls
        )

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads the JSON between the tags."""
        return read_objects([found.strip() for found in _CALL.findall(text)])


class LingTools(QwenTools):
    """The format of Ling 2: Qwen's, with thinking switched off in the same text."""

    before = _HEAD
    after = _TAIL + "\ndetailed thinking off"
    tools_jinja = list_tools_jinja(before, after)


TOOL_FORMATS.register("qwen")(QwenTools())
TOOL_FORMATS.register("ling")(LingTools())
