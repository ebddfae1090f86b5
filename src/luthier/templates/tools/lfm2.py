"""Tools as one JSON list, calls as Python calls with keyword arguments."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from luthier.errors import TemplateError
from luthier.templates.slots import quote
from luthier.templates.tool_format import TOOL_FORMATS, FunctionCall, ToolFormat, bare, dump

_NEEDS_OBJECT = "tool format lfm2 needs a call's arguments as an object"
_START, _END = "<|tool_call_start|>", "<|tool_call_end|>"
_JSON_WORDS = {"true": True, "false": False, "null": None}


class Lfm2Tools(ToolFormat):
    """The format of LFM2."""

    tools_jinja = (
        "{%- set listed = namespace(all=[]) %}"
        "{%- for tool in tools %}"
        '{%- set listed.all = listed.all + [tool["function"] if tool["type"] == "function"'
        " else tool] %}"
        "{%- endfor %}"
        '{{- "List of tools: <|tool_list_start|>" ~ (listed.all | tojson) ~'
        ' "<|tool_list_end|>" }}'
    )
    calls_jinja = (
        f'{{{{- "{_START}[" }}}}'
        "{%- for call in calls %}"
        '{%- set arguments = call["arguments"] %}'
        "{%- if arguments is not mapping %}"
        "{{- raise_exception(" + quote(_NEEDS_OBJECT) + ") }}"
        "{%- endif %}"
        '{{- call["name"] ~ "(" }}'
        "{%- for key, value in arguments.items() %}"
        '{{- key ~ "=" ~ ("\\"" ~ value ~ "\\"" if value is string else value | tojson) }}'
        '{{- "" if loop.last else ", " }}'
        "{%- endfor %}"
        '{{- ")" ~ ("" if loop.last else ", ") }}'
        "{%- endfor %}"
        f'{{{{- "]{_END}" }}}}'
    )

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """The list between its two tokens."""
        listed = dump([bare(tool) for tool in tools])
        return f"List of tools: <|tool_list_start|>{listed}<|tool_list_end|>"

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """A list of Python calls between two tokens."""
        return f"{_START}[{', '.join(map(_render, calls))}]{_END}"

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads the list as Python, with JSON's words for true, false and null."""
        written = text.partition(_START)[2].partition(_END)[0].strip()
        try:
            body = ast.parse(written, mode="eval").body
            nodes = body.elts if isinstance(body, ast.List) else [body]
            return [_read(node) for node in nodes]
        except (SyntaxError, ValueError):
            return []


def _render(call: FunctionCall) -> str:
    if not isinstance(call.arguments, dict):
        raise TemplateError(
            f"{_NEEDS_OBJECT}, but {call.name!r} is called with {dump(call.arguments)}."
        )
    arguments = (
        f'{key}="{value}"' if isinstance(value, str) else f"{key}={dump(value)}"
        for key, value in call.arguments.items()
    )
    return f"{call.name}({', '.join(arguments)})"


def _read(node: ast.expr) -> FunctionCall:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(ast.dump(node))
    return FunctionCall(
        node.func.id,
        {keyword.arg: _value(keyword.value) for keyword in node.keywords},
    )


def _value(node: ast.expr) -> Any:
    """A literal; JSON's words may stand anywhere in it."""

    class Words(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.AST:
            if name.id not in _JSON_WORDS:
                return name
            return ast.copy_location(ast.Constant(_JSON_WORDS[name.id]), name)

    return ast.literal_eval(Words().visit(node))


TOOL_FORMATS.register("lfm2")(Lfm2Tools())
