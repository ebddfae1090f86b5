"""Calls as lines of `Action` and `Action Input`: the default format, and Phi-4-mini's."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luthier.templates.tool_format import (
    TOOL_FORMATS,
    UNWRAP,
    FunctionCall,
    ToolFormat,
    dump,
    load,
    parse_tools,
)

_USE = "Use the following format if using a tool:\n```\nAction: tool name (one of ["
_AFTER = (
    "])\nAction Input: the input to the tool, in a JSON format representing the kwargs "
    '(e.g. ```{"input": "hello world", "num_beams": 5}```)\n```\n'
)
_TOOLS = (
    "{{- " + dump("You have access to the following tools:\n") + " }}"
    "{%- set tool_names = namespace(all=[]) %}"
    "{%- for tool in tools %}" + UNWRAP + '{%- set tool_names.all = tool_names.all + [tool["name"]]'
    ' %}{{- "> Tool Name: " ~ tool["name"] ~ "\\nTool Description: " ~'
    ' (tool["description"] or "") ~ "\\nTool Args:\\n" }}'
    '{%- set parameters = tool["parameters"] or {} %}'
    '{%- for name, parameter in (parameters["properties"] or {}).items() %}'
    '{{- "  - " ~ name ~ " (" ~ parameter["type"] }}'
    '{{- ", required" if name in (parameters["required"] or []) else "" }}'
    '{{- "): " ~ parameter["description"] }}'
    '{%- if parameter["enum"] %}'
    '{{- ", should be one of [" ~ (parameter["enum"] | join(", ")) ~ "]" }}'
    "{%- endif %}"
    '{%- if "items" in parameter and parameter["items"] %}'
    '{{- ", where each item should be " ~ parameter["items"]["type"] }}'
    "{%- endif %}"
    '{{- "\\n" }}'
    "{%- endfor %}"
    '{{- "\\n" }}'
    "{%- endfor %}"
    "{{- " + dump(_USE) + ' ~ (tool_names.all | join(", ")) ~ ' + dump(_AFTER) + " }}"
)
_CALLS = (
    "{%- for call in calls %}"
    '{%- set arguments = call["arguments"] %}'
    '{{- "Action: " ~ call["name"] ~ "\\nAction Input: " ~'
    " (arguments if arguments is string else arguments | tojson) }}"
    '{{- "" if loop.last else "\\n" }}'
    "{%- endfor %}"
)
_CALL = re.compile(
    r"Action:\s*([^\n]+?)\s*\n\s*Action Input:\s*(.+?)(?=\s*\nAction:|\s*$)", re.DOTALL
)


def extract_calls(text: str) -> list[FunctionCall]:
    """Reads the two lines; quotes and backticks around the input are taken off."""
    calls = []
    for name, written in _CALL.findall(text):
        arguments = load(written.strip().strip('"').strip("`"))
        if isinstance(arguments, str):
            return []
        calls.append(FunctionCall(name, arguments))
    return calls


@dataclass(frozen=True)
class _AsGiven(ToolFormat):
    def describe(self, tools: str) -> str:
        """The JSON text as it was given, that of an empty list as well."""
        is_given = parse_tools(tools) or tools.strip() not in ("", "null")
        return f"<|tool|>{tools}<|/tool|>" if is_given else ""


TOOL_FORMATS.register("default")(ToolFormat(_TOOLS, _CALLS, extract_calls))
TOOL_FORMATS.register("phi4_mini")(
    _AsGiven(
        '{{- "<|tool|>" ~ (tools | tojson) ~ "<|/tool|>" }}',
        _CALLS,
        extract_calls,
        describes_none=True,
    )
)
