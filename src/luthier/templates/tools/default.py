"""tools as a plain list, calls as lines of `Action` and `Action Input`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from luthier.templates.slots import quote
from luthier.templates.tool_format import TOOL_FORMATS, FunctionCall, ToolFormat, bare, dump, load

_BEFORE = "You have access to the following tools:\n"
_USE = "Use the following format if using a tool:\n```\nAction: tool name (one of ["
_AFTER = (
    "])\nAction Input: the input to the tool, in a JSON format representing the kwargs "
    '(e.g. ```{"input": "hello world", "num_beams": 5}```)\n```\n'
)
_CALL = re.compile(
    r"Action:\s*([^\n]+?)\s*\n\s*Action Input:\s*(.+?)(?=\s*\nAction:|\s*$)", re.DOTALL
)


class DefaultTools(ToolFormat):
    """The format of templates whose models have none of their own."""

    tools_jinja = (
        "{{- " + quote(_BEFORE) + " }}"
        "{%- set tool_names = namespace(all=[]) %}"
        "{%- for tool in tools %}"
        '{%- set tool = tool["function"] if tool["type"] == "function" else tool %}'
        '{%- set tool_names.all = tool_names.all + [tool["name"]] %}'
        '{{- "> Tool Name: " ~ tool["name"] ~ "\\nTool Description: " ~'
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
        "{{- " + quote(_USE) + ' ~ (tool_names.all | join(", ")) ~ ' + quote(_AFTER) + " }}"
    )
    calls_jinja = (
        "{%- for call in calls %}"
        '{%- set arguments = call["arguments"] %}'
        '{{- "Action: " ~ call["name"] ~ "\\nAction Input: " ~'
        " (arguments if arguments is string else arguments | tojson) }}"
        '{{- "" if loop.last else "\\n" }}'
        "{%- endfor %}"
    )

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """Each tool with its parameters, then how to call one."""
        described = [bare(tool) for tool in tools]
        names = ", ".join(tool["name"] for tool in described)
        return _BEFORE + "".join(map(_describe_tool, described)) + _USE + names + _AFTER

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """Two lines a call."""
        return "\n".join(
            f"Action: {call.name}\nAction Input: {dump(call.arguments)}" for call in calls
        )

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads the two lines; quotes and backticks around the input are taken off."""
        calls = []
        for name, written in _CALL.findall(text):
            arguments = load(written.strip().strip('"').strip("`"))
            if isinstance(arguments, str):
                return []
            calls.append(FunctionCall(name, arguments))
        return calls


def _describe_tool(tool: dict[str, Any]) -> str:
    parameters = tool.get("parameters") or {}
    required = parameters.get("required") or []
    lines = "".join(
        _describe_parameter(name, parameter, name in required)
        for name, parameter in (parameters.get("properties") or {}).items()
    )
    return (
        f"> Tool Name: {tool['name']}\nTool Description: {tool.get('description') or ''}\n"
        f"Tool Args:\n{lines}\n"
    )


def _describe_parameter(name: str, parameter: dict[str, Any], is_required: bool) -> str:
    text = f"  - {name} ({parameter.get('type', '')}{', required' if is_required else ''}): "
    text += str(parameter.get("description", ""))
    if parameter.get("enum"):
        text += f", should be one of [{', '.join(map(str, parameter['enum']))}]"
    if parameter.get("items"):
        text += f", where each item should be {parameter['items'].get('type', '')}"
    return text + "\n"


TOOL_FORMATS.register("default")(DefaultTools())
