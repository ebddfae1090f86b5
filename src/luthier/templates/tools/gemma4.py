"""Tools as declarations, calls in a short form of JSON whose texts stand between marks: Gemma 4."""

from __future__ import annotations

import json
import re

from luthier.templates.tool_format import TOOL_FORMATS, FunctionCall, ToolFormat, dump, load

_MARK = '<|"|>'
_CALL = re.compile(r"<\|tool_call>call:([^{\s]+)\{(.*?)\}<tool_call\|>", re.DOTALL)
_KEY = re.compile(r"(^|[{,]\s*)([^\s{}\[\],:]+)\s*:")

_CALLS = """
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
{%- for call in calls %}
{{- "<|tool_call>call:" ~ call["name"] ~ "{" ~ written(call["arguments"], true) ~
 "}<tool_call|>" }}
{%- endfor %}
"""

_TOOLS = """
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


def extract_calls(text: str) -> list[FunctionCall]:
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


TOOL_FORMATS.register("gemma4")(
    ToolFormat(
        _TOOLS.replace("\n", "").replace("MARK", dump(_MARK)),
        _CALLS.replace("\n", "").replace("MARK", dump(_MARK)),
        extract_calls,
        writes_text_bare=True,
    )
)
