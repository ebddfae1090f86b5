"""Tools as one JSON list, calls as Python calls with keyword arguments: LFM2."""

from __future__ import annotations

import ast

from luthier.templates.tool_format import BARE, TOOL_FORMATS, FunctionCall, ToolFormat, dump

_NEEDS_OBJECT = "tool format lfm2 needs a call's arguments as an object"
_START, _END = "<|tool_call_start|>", "<|tool_call_end|>"
_JSON_WORDS = {"true": True, "false": False, "null": None}


class _Words(ast.NodeTransformer):
    """JSON's words, which may stand anywhere in a literal, as those of Python."""

    def visit_Name(self, name: ast.Name) -> ast.AST:
        if name.id not in _JSON_WORDS:
            return name
        return ast.copy_location(ast.Constant(_JSON_WORDS[name.id]), name)


def extract_calls(text: str) -> list[FunctionCall]:
    """Reads the list as Python, with JSON's words for true, false and null."""
    written = text.partition(_START)[2].partition(_END)[0].strip()
    calls = []
    try:
        body = ast.parse(written, mode="eval").body
        for node in body.elts if isinstance(body, ast.List) else [body]:
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                return []
            arguments = {
                keyword.arg: ast.literal_eval(_Words().visit(keyword.value))
                for keyword in node.keywords
            }
            calls.append(FunctionCall(node.func.id, arguments))
    except (SyntaxError, ValueError):
        return []
    return calls


TOOL_FORMATS.register("lfm2")(
    ToolFormat(
        "{%- set listed = namespace(all=[]) %}"
        "{%- for tool in tools %}"
        f"{{%- set listed.all = listed.all + [{BARE[1:-1]}] %}}"
        "{%- endfor %}"
        '{{- "List of tools: <|tool_list_start|>" ~ (listed.all | tojson) ~'
        ' "<|tool_list_end|>" }}',
        f'{{{{- "{_START}[" }}}}'
        "{%- for call in calls %}"
        '{%- set arguments = call["arguments"] %}'
        "{%- if arguments is not mapping %}"
        "{{- raise_exception(" + dump(_NEEDS_OBJECT) + ") }}"
        "{%- endif %}"
        '{{- call["name"] ~ "(" }}'
        "{%- for key, value in arguments.items() %}"
        '{{- key ~ "=" ~ ("\\"" ~ value ~ "\\"" if value is string else value | tojson) }}'
        '{{- "" if loop.last else ", " }}'
        "{%- endfor %}"
        '{{- ")" ~ ("" if loop.last else ", ") }}'
        "{%- endfor %}"
        f'{{{{- "]{_END}" }}}}',
        extract_calls,
        needs_object=_NEEDS_OBJECT,
    )
)
