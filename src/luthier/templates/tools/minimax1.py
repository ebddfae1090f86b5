"""Tools and calls as lines of JSON, the calls between one pair of tags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from luthier.templates.slots import quote
from luthier.templates.tool_format import (
    TOOL_FORMATS,
    FunctionCall,
    ToolFormat,
    bare,
    dump,
    read_objects,
)

_HEAD = "You are provided with these tools:\n<tools>\n"
_TAIL = (
    "</tools>\n\nIf you need to call tools, please respond with <tool_calls></tool_calls> XML "
    "tags, and provide tool-name and json-object of arguments, following the format below:\n"
    '<tool_calls>\n{"name": <tool-name-1>, "arguments": <args-json-object-1>}\n...\n</tool_calls>'
)


class MiniMax1Tools(ToolFormat):
    """The format of MiniMax M1."""

    tools_jinja = (
        "{{- " + quote(_HEAD) + " }}"
        "{%- for tool in tools %}"
        '{{- ((tool["function"] if tool["type"] == "function" else tool) | tojson) ~ "\\n" }}'
        "{%- endfor %}"
        "{{- " + quote(_TAIL) + " }}"
    )
    calls_jinja = (
        '{{- "<tool_calls>\\n" }}'
        "{%- for call in calls %}"
        '{%- set arguments = call["arguments"] %}'
        '{{- "{\\"name\\": " ~ (call["name"] | tojson) ~ ", \\"arguments\\": " ~'
        ' (arguments if arguments is string else arguments | tojson) ~ "}\\n" }}'
        "{%- endfor %}"
        '{{- "</tool_calls>" }}'
    )

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """The tools as lines of JSON."""
        return _HEAD + "".join(dump(bare(tool)) + "\n" for tool in tools) + _TAIL

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """A line for each call."""
        lines = "".join(
            dump({"name": call.name, "arguments": call.arguments}) + "\n" for call in calls
        )
        return f"<tool_calls>\n{lines}</tool_calls>"

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads the lines between the tags."""
        found = re.search(r"<tool_calls>(.+?)</tool_calls>", text, re.DOTALL)
        lines = found.group(1).splitlines() if found else []
        return read_objects([line for line in lines if line.strip()])


TOOL_FORMATS.register("minimax1")(MiniMax1Tools())
