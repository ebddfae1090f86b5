"""Calls as JSON: Qwen, Ling 2, Mistral, Llama 3, MiniMax M1, and GLM-4, which names them before."""

from __future__ import annotations

import re

from luthier.templates.tool_format import (
    BARE,
    TOOL_FORMATS,
    UNWRAP,
    WRAPPED,
    FunctionCall,
    ToolFormat,
    dump,
    list_json_calls,
    list_tools,
    load,
    read_objects,
)

_QWEN_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_QWEN_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_TAGGED = re.compile(r"<tool_call>(.+?)</tool_call>", re.DOTALL)


def _qwen(before: str, after: str) -> ToolFormat:
    return ToolFormat(
        list_tools(before, f'{{{{- "\\n" ~ ({WRAPPED} | tojson) }}}}', after),
        list_json_calls("<tool_call>\n", "\n</tool_call>", between="\n"),
        lambda text: read_objects([found.strip() for found in _TAGGED.findall(text)]),
    )


TOOL_FORMATS.register("qwen")(_qwen("\n\n" + _QWEN_HEAD, _QWEN_TAIL))  # of 2.5 and 3, after Hermes
TOOL_FORMATS.register("ling")(_qwen(_QWEN_HEAD, _QWEN_TAIL + "\ndetailed thinking off"))

# Mistral 0.3 and later; the markers of calls belong to the templates
TOOL_FORMATS.register("mistral")(
    ToolFormat(
        "{%- set listed = namespace(all=[]) %}"
        "{%- for tool in tools %}"
        f"{{%- set listed.all = listed.all + [{WRAPPED[1:-1]}] %}}"
        "{%- endfor %}"
        '{{- "[AVAILABLE_TOOLS] " ~ (listed.all | tojson) ~ "[/AVAILABLE_TOOLS]" }}',
        '{{- "[" }}' + list_json_calls(between=", ") + '{{- "]" }}',
        lambda text: read_objects([text.rpartition("[TOOL_CALLS]")[2].strip()]),
    )
)

TODAY = "26 Jul 2024"
"""The date in the system text: the one Llama 3.1's own chat template takes when none is given.

It does not follow the calendar, so that the data of a run that goes on the next day is the same.
"""

_LLAMA3_HEAD = (
    f"Cutting Knowledge Date: December 2023\nToday Date: {TODAY}\n\n"
    "You have access to the following functions. To call a function, please respond with JSON for "
    'a function call. Respond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}. Do not use variables.\n\n"
)
TOOL_FORMATS.register("llama3")(
    ToolFormat(
        list_tools(_LLAMA3_HEAD, f'{{{{- ({WRAPPED} | tojson(indent=4)) ~ "\\n\\n" }}}}'),
        '{{- "[" if calls | length != 1 else "" }}'
        + list_json_calls(between=", ", key="parameters")
        + '{{- "]" if calls | length != 1 else "" }}',
        lambda text: read_objects([text.strip()], key="parameters"),
        takes_text=False,
    )
)

_MINIMAX1_TAIL = (
    "</tools>\n\nIf you need to call tools, please respond with <tool_calls></tool_calls> XML "
    "tags, and provide tool-name and json-object of arguments, following the format below:\n"
    '<tool_calls>\n{"name": <tool-name-1>, "arguments": <args-json-object-1>}\n...\n</tool_calls>'
)


def _read_lines(text: str) -> list[FunctionCall]:
    found = re.search(r"<tool_calls>(.+?)</tool_calls>", text, re.DOTALL)
    lines = found.group(1).splitlines() if found else []
    return read_objects([line for line in lines if line.strip()])


TOOL_FORMATS.register("minimax1")(
    ToolFormat(
        list_tools(
            "You are provided with these tools:\n<tools>\n",
            f'{{{{- ({BARE} | tojson) ~ "\\n" }}}}',
            _MINIMAX1_TAIL,
        ),
        '{{- "<tool_calls>\\n" }}' + list_json_calls(after="\n") + '{{- "</tool_calls>" }}',
        _read_lines,
    )
)

_GLM4_HEAD = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
_GLM4_USE = "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
_ONE_CALL = "tool format glm4 writes one call a turn"


def _read_named(text: str) -> list[FunctionCall]:
    name, _, written = text.partition("\n")
    arguments = load(written.strip())
    return [] if isinstance(arguments, str) else [FunctionCall(name.strip(), arguments)]


# ChatGLM 3, GLM-4 and GLM-Z1: a name and a line of JSON
TOOL_FORMATS.register("glm4")(
    ToolFormat(
        list_tools(
            _GLM4_HEAD,
            UNWRAP
            + '{{- "\\n\\n## " ~ tool["name"] ~ "\\n\\n" ~ (tool | tojson(indent=4)) ~ '
            + dump(_GLM4_USE)
            + " }}",
        ),
        "{%- if calls | length > 1 %}{{- raise_exception(" + dump(_ONE_CALL) + ") }}{%- endif %}"
        '{%- set arguments = calls[0]["arguments"] %}'
        '{{- calls[0]["name"] ~ "\\n" ~'
        " (arguments if arguments is string else arguments | tojson) }}",
        _read_named,
        takes_text=False,
        one_call=_ONE_CALL,
    )
)
