"""Tools as one JSON list between brackets, calls as a JSON list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.templates.tool_format import (
    TOOL_FORMATS,
    FunctionCall,
    ToolFormat,
    dump,
    read_objects,
    wrapped,
)


class MistralTools(ToolFormat):
    """The format of Mistral 0.3 and later; the markers of calls belong to the templates."""

    tools_jinja = (
        "{%- set listed = namespace(all=[]) %}"
        "{%- for tool in tools %}"
        '{%- set listed.all = listed.all + [tool if tool["type"] == "function" else'
        ' {"type": "function", "function": tool}] %}'
        "{%- endfor %}"
        '{{- "[AVAILABLE_TOOLS] " ~ (listed.all | tojson) ~ "[/AVAILABLE_TOOLS]" }}'
    )
    calls_jinja = (
        '{{- "[" }}'
        "{%- for call in calls %}"
        '{%- set arguments = call["arguments"] %}'
        '{{- "{\\"name\\": " ~ (call["name"] | tojson) ~ ", \\"arguments\\": " ~'
        ' (arguments if arguments is string else arguments | tojson) ~ "}" }}'
        '{{- "" if loop.last else ", " }}'
        "{%- endfor %}"
        '{{- "]" }}'
    )

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """The list between its two markers."""
        return f"[AVAILABLE_TOOLS] {dump([wrapped(tool) for tool in tools])}[/AVAILABLE_TOOLS]"

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """A list, also for one call."""
        return dump([{"name": call.name, "arguments": call.arguments} for call in calls])

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads an answer that is nothing but such JSON, or ends so behind the marker."""
        return read_objects([text.rpartition("[TOOL_CALLS]")[2].strip()])


TOOL_FORMATS.register("mistral")(MistralTools())
