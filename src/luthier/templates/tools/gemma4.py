"""Tools as declarations, calls in a short form of JSON whose texts stand between marks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.templates.slots import quote
from luthier.templates.tool_format import TOOL_FORMATS, FunctionCall, ToolFormat, bare, load

_MARK = '<|"|>'
_CALL = re.compile(r"<\|tool_call>call:([^{\s]+)\{(.*?)\}<tool_call\|>", re.DOTALL)
_KEY = re.compile(r"(^|[{,]\s*)([^\s{}\[\],:]+)\s*:")

_VALUE_JINJA = """
{%- macro written(value, outer) -%}
{%- if value is string %}{{- value if outer else MARK ~ value ~ MARK }}
{%- elif value is none %}{{- "null" }}
{%- elif value is boolean %}{{- "true" if value else "false" }}
{%- elif value is mapping %}
{{- "" if outer else "{" }}
{%- for key, each in value | dictsort(true) %}
{{- key ~ ":" ~ written(each, false) ~ ("" if loop.last else ",") }}
{%- endfor %}
{{- "" if outer else "}" }}
{%- elif value is iterable %}
{{- "[" }}
{%- for each in value %}{{- written(each, false) ~ ("" if loop.last else ",") }}{%- endfor %}
{{- "]" }}
{%- else %}{{- value }}
{%- endif %}
{%- endmacro %}
"""

_TOOLS_JINJA = """
{%- for tool in tools %}
{%- set tool = tool["function"] if tool["type"] == "function" else tool %}
{{- "declaration:" ~ tool["name"] ~ "{description:" ~ MARK ~ tool["description"] ~ MARK }}
{%- set schema = tool["parameters"] or {} %}
{%- if schema %}
{%- set told = namespace(parts=[]) %}
{%- if schema["properties"] %}
{%- set listed = namespace(parts=[]) %}
{%- for name, each in schema["properties"].items() %}
{%- set described = ["description:" ~ MARK ~ each["description"] ~ MARK]
 if each["description"] else [] %}
{%- set typed = ["type:" ~ MARK ~ (each["type"] | string | upper) ~ MARK]
 if each["type"] else [] %}
{%- set listed.parts = listed.parts + [name ~ ":{" ~ ((described + typed) | join(",")) ~ "}"] %}
{%- endfor %}
{%- set told.parts = ["properties:{" ~ (listed.parts | join(",")) ~ "}"] %}
{%- endif %}
{%- if schema["required"] %}
{%- set told.parts = told.parts
 + ["required:[" ~ MARK ~ (schema["required"] | join(MARK ~ "," ~ MARK)) ~ MARK ~ "]"] %}
{%- endif %}
{%- if schema["type"] %}
{%- set told.parts = told.parts + ["type:" ~ MARK ~ (schema["type"] | string | upper) ~ MARK] %}
{%- endif %}
{{- ",parameters:{" ~ (told.parts | join(",")) ~ "}" }}
{%- endif %}
{%- set answer = tool["response"] %}
{%- if answer %}
{%- set described = ["description:" ~ MARK ~ answer["description"] ~ MARK]
 if answer["description"] else [] %}
{%- set typed = ["type:" ~ MARK ~ "OBJECT" ~ MARK]
 if answer["type"] | string | upper == "OBJECT" else [] %}
{{- ",response:{" ~ ((described + typed) | join(",")) ~ "}" }}
{%- endif %}
{{- "}" if loop.last else "}\\n" }}
{%- endfor %}
"""


class Gemma4Tools(ToolFormat):
    """The format that models of template `gemma4` are tuned with."""

    tools_jinja = _TOOLS_JINJA.replace("\n", "").replace("MARK", quote(_MARK))
    calls_jinja = _VALUE_JINJA.replace("\n", "").replace("MARK", quote(_MARK)) + (
        "{%- for call in calls %}"
        '{{- "<|tool_call>call:" ~ call["name"] ~ "{" ~ written(call["arguments"], true) ~'
        ' "}<tool_call|>" }}'
        "{%- endfor %}"
    )

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """A declaration a line."""
        return "\n".join(_declare(bare(tool)) for tool in tools)

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """The calls one after the other; arguments in the order of their names."""
        return "".join(
            f"<|tool_call>call:{call.name}{{{_written(call.arguments, is_outer=True)}}}<tool_call|>"
            for call in calls
        )

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads the arguments as JSON once names and texts are quoted as it wants them."""
        calls = []
        for name, written in _CALL.findall(text):
            parts = ("{" + written + "}").split(_MARK)
            parts[::2] = [_KEY.sub(r'\1"\2":', part) for part in parts[::2]]
            parts[1::2] = map(json.dumps, parts[1::2])
            arguments = load("".join(parts))
            if not isinstance(arguments, dict):
                return []
            calls.append(FunctionCall(name, arguments))
        return calls


def _declare(tool: Mapping[str, Any]) -> str:
    parts = [f"description:{_marked(tool.get('description', ''))}"]
    schema = tool.get("parameters")
    if schema:
        told = []
        if schema.get("properties"):
            listed = ",".join(
                f"{name}:{{{_describe(each)}}}" for name, each in schema["properties"].items()
            )
            told.append(f"properties:{{{listed}}}")
        if schema.get("required"):
            told.append(f"required:[{','.join(map(_marked, schema['required']))}]")
        if schema.get("type"):
            told.append(f"type:{_marked(str(schema['type']).upper())}")
        parts.append(f"parameters:{{{','.join(told)}}}")
    answer = tool.get("response")
    if answer:
        is_object = str(answer.get("type", "")).upper() == "OBJECT"
        described = _describe({**answer, "type": "object" if is_object else ""})
        parts.append(f"response:{{{described}}}")
    return f"declaration:{tool['name']}{{{','.join(parts)}}}"


def _describe(parameter: Mapping[str, Any]) -> str:
    parts = []
    if parameter.get("description"):
        parts.append(f"description:{_marked(parameter['description'])}")
    if parameter.get("type"):
        parts.append(f"type:{_marked(str(parameter['type']).upper())}")
    return ",".join(parts)


def _marked(text: object) -> str:
    return f"{_MARK}{text}{_MARK}"


def _written(value: Any, *, is_outer: bool = False) -> str:
    if isinstance(value, str):
        return value if is_outer else _marked(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        inner = ",".join(f"{key}:{_written(each)}" for key, each in sorted(value.items()))
        return inner if is_outer else f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return str(value)


TOOL_FORMATS.register("gemma4")(Gemma4Tools())
