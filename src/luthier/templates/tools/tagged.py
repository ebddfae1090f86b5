"""Calls whose arguments stand in tags of their own: GLM-4.5, MiniMax M2, Seed-OSS, Qwen 3.5."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from luthier.templates.tool_format import (
    BARE,
    TOOL_FORMATS,
    UNWRAP,
    WRAPPED,
    FunctionCall,
    ToolFormat,
    dump,
    list_tools,
    load,
)

_GLM_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_NEEDS_OBJECT = "this tool format needs a call's arguments as an object"


@dataclass(frozen=True)
class Tags:
    """The texts of a call, name and values left out."""

    before_name: str  # opens a call
    after_name: str
    before_key: str  # opens an argument
    after_key: str
    after_value: str  # closes an argument
    end: str  # closes a call
    between: str = ""  # stands between two calls

    def as_jinja(self) -> str:
        """Statements that print the list `calls` a call after the other."""
        return (
            "{%- for call in calls %}"
            '{%- set arguments = call["arguments"] %}'
            "{%- if arguments is not mapping %}"
            "{{- raise_exception(" + dump(_NEEDS_OBJECT) + ") }}"
            "{%- endif %}"
            f'{{{{- {dump(self.before_name)} ~ call["name"] ~ {dump(self.after_name)} }}}}'
            "{%- for key, value in arguments.items() %}"
            f"{{{{- {dump(self.before_key)} ~ key ~ {dump(self.after_key)} ~"
            " (value if value is string else value | tojson)"
            f" ~ {dump(self.after_value)} }}}}"
            "{%- endfor %}"
            f"{{{{- {dump(self.end)} ~ ('' if loop.last else {dump(self.between)}) }}}}"
            "{%- endfor %}"
        )

    def read(self, text: str) -> list[FunctionCall]:
        """The calls in `text`, with any whitespace between the tags."""
        before_name, after_name, before_key, after_key, after_value, end = (
            r"\s*" + "".join(re.escape(part) + r"\s*" for part in tag.split())
            for tag in (
                *(self.before_name, self.after_name, self.before_key),
                *(self.after_key, self.after_value, self.end),
            )
        )
        call = f'{before_name}([^<>\\n"]+?){after_name}((?:(?!{before_name}).)*?){end}'
        argument = f"{before_key}(.*?){after_key}(.*?){after_value}"
        return [
            FunctionCall(
                name.strip(),
                {
                    key.strip(): load(value)
                    for key, value in re.findall(argument, arguments, re.DOTALL)
                },
            )
            for name, arguments in re.findall(call, text, re.DOTALL)
        ]


def _read_glm(text: str) -> list[FunctionCall]:
    """Calls with or without their closing tag."""
    calls = []
    for part in text.split("<tool_call>")[1:]:
        name, opening, rest = part.partition("</tool_call>")[0].partition("<arg_key>")
        arguments = _GLM_ARGUMENT.findall(opening + rest)
        calls.append(
            FunctionCall(name.strip(), {key.strip(): load(value) for key, value in arguments})
        )
    return calls


def _tagged(
    tools_jinja: str,
    tags: Tags,
    read: Callable[[str], list[FunctionCall]] | None = None,
    after_text: str = "",
) -> ToolFormat:
    return ToolFormat(
        tools_jinja,
        tags.as_jinja(),
        read or tags.read,
        after_text=after_text,
        needs_object=_NEEDS_OBJECT,
    )


_GLM_BEFORE = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_GLM_AFTER = (
    "\n</tools>\n\nFor each function call, output the function name and arguments within the "
    "following XML format:\n<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n"
    "<arg_value>{arg-value-1}</arg_value>\n<arg_key>{arg-key-2}</arg_key>\n"
    "<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>\n"
)
# GLM-4.5 to 4.7: calls have no closing tag, the turn ends instead
TOOL_FORMATS.register("glm4_moe")(
    _tagged(
        list_tools(_GLM_BEFORE, f'{{{{- "\\n" ~ ({WRAPPED} | tojson) }}}}', _GLM_AFTER),
        Tags(
            "\n<tool_call>", "", "\n<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>", "", "\n"
        ),
        _read_glm,
    )
)

_MINIMAX_BEFORE = (
    "\n\n# Tools\n\nYou may call one or more tools to assist with the user query.\n"
    "Here are the tools available in JSONSchema format:\n\n<tools>\n"
)
_MINIMAX_AFTER = (
    "</tools>\n\nWhen making tool calls, use XML format to invoke tools and pass parameters:\n"
    '\n<minimax:tool_call>\n<invoke name="tool-name-1">\n'
    '<parameter name="param-key-1">param-value-1</parameter>\n'
    '<parameter name="param-key-2">param-value-2</parameter>\n...\n</invoke>\n'
    "</minimax:tool_call>"
)
_MINIMAX_TOOL = UNWRAP + '{{- "<tool>" ~ (tool | tojson) ~ "</tool>\\n" }}'
TOOL_FORMATS.register("minimax2")(
    _tagged(
        list_tools(_MINIMAX_BEFORE, _MINIMAX_TOOL, _MINIMAX_AFTER),
        Tags(
            '<invoke name="', '">', '\n<parameter name="', '">', "</parameter>", "\n</invoke>", "\n"
        ),
        after_text="\n",
    )
)

_SEED_BEFORE = (
    "system\nYou are Doubao, a helpful AI assistant. You may call one or more functions to "
    "assist with the user query.Tool List:\nYou are authorized to use the following tools "
    "(described in JSON Schema format). Before performing any task, you must decide how to "
    "call them based on the descriptions and parameters of these tools.\n"
)
_SEED_AFTER = (
    "\n工具调用请遵循如下格式:\n<seed:tool_call>\n<function=example_function_name>\n"
    "<parameter=example_parameter_1>value_1</parameter>\n<parameter=example_parameter_2>"
    "This is the value for the second parameter\nthat can span\nmultiple lines</parameter>\n"
    "</function>\n</seed:tool_call>\n"
)
TOOL_FORMATS.register("seed_oss")(
    _tagged(
        "{{- " + dump(_SEED_BEFORE) + " ~ (tools | tojson) ~ " + dump(_SEED_AFTER) + " }}",
        Tags(
            "\n<seed:tool_call>\n<function=",
            ">",
            "\n<parameter=",
            ">",
            "</parameter>",
            "\n</function>\n</seed:tool_call>",
            "\n",
        ),
    )
)

_QWEN_BEFORE = "\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>"
_QWEN_AFTER = (
    "\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO "
    "suffix:\n\n<tool_call>\n<function=example_function_name>\n"
    "<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\n"
    "that can span\nmultiple lines\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\n"
    "Reminder:\n- Function calls MUST follow the specified format: an inner "
    "<function=...></function> block must be nested within <tool_call></tool_call> XML tags\n"
    "- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE "
    "the function call, but NOT after\n"
    "- If there is no function call available, answer the question like normal with your "
    "current knowledge and do not tell the user about function calls\n</IMPORTANT>"
)
TOOL_FORMATS.register("qwen3_5")(
    _tagged(
        list_tools(_QWEN_BEFORE, f'{{{{- "\\n" ~ ({BARE} | tojson) }}}}', _QWEN_AFTER),
        Tags(
            "<tool_call>\n<function=",
            ">",
            "\n<parameter=",
            ">\n",
            "\n</parameter>",
            "\n</function>\n</tool_call>",
            "\n",
        ),
        after_text="\n\n",
    )
)
