"""Tools as indented JSON, one call as a JSON object with parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.templates.slots import quote
from luthier.templates.tool_format import (
    TOOL_FORMATS,
    FunctionCall,
    ToolFormat,
    dump,
    read_objects,
    wrapped,
)

TODAY = "26 Jul 2024"
"""The date in the system text: the one Llama 3.1's own chat template takes when none is given.

It does not follow the calendar, so that the data of a run that goes on the next day is the same.
"""

_HEAD = (
    f"Cutting Knowledge Date: December 2023\nToday Date: {TODAY}\n\n"
    "You have access to the following functions. To call a function, please respond with JSON for "
    'a function call. Respond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}. Do not use variables.\n\n"
)


class Llama3Tools(ToolFormat):
    """The JSON calls of Llama 3.1 to 3.3."""

    takes_text = False
    tools_jinja = (
        "{{- " + quote(_HEAD) + " }}"
        "{%- for tool in tools %}"
        '{{- ((tool if tool["type"] == "function" else {"type": "function", "function": tool})'
        ' | tojson(indent=4)) ~ "\\n\\n" }}'
        "{%- endfor %}"
    )
    calls_jinja = (
        '{{- "[" if calls | length > 1 else "" }}'
        "{%- for call in calls %}"
        '{%- set arguments = call["arguments"] %}'
        '{{- "{\\"name\\": " ~ (call["name"] | tojson) ~ ", \\"parameters\\": " ~'
        ' (arguments if arguments is string else arguments | tojson) ~ "}" }}'
        '{{- "" if loop.last else ", " }}'
        "{%- endfor %}"
        '{{- "]" if calls | length > 1 else "" }}'
    )

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """How to call, then each tool with four spaces of indent."""
        return _HEAD + "".join(dump(wrapped(tool), indent=4) + "\n\n" for tool in tools)

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """One object, or a list of several."""
        written = [{"name": call.name, "parameters": call.arguments} for call in calls]
        return dump(written[0] if len(written) == 1 else written)

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads an answer that is nothing but such JSON."""
        return read_objects([text.strip()], key="parameters")


TOOL_FORMATS.register("llama3")(Llama3Tools())
