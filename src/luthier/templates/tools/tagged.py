"""Calls whose arguments stand in tags of their own: GLM-4.5, MiniMax M2, Seed-OSS, Qwen 3.5."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import TemplateError
from luthier.templates.slots import quote
from luthier.templates.tool_format import (
    TOOL_FORMATS,
    FunctionCall,
    ToolFormat,
    bare,
    dump,
    load,
    wrapped,
)
from luthier.templates.tools.qwen import list_tools_jinja

_GLM_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_NEEDS_OBJECT = "this tool format needs a call's arguments as an object"


@dataclass(frozen=True)
class Tags:
    """The texts of a call, name and values left out.

    Attributes:
        before_name: opens a call.
        after_name: stands between the name and the first argument.
        before_key: opens an argument.
        after_key: stands between key and value.
        after_value: closes an argument.
        end: closes a call.
        between: stands between two calls.
    """

    before_name: str
    after_name: str
    before_key: str
    after_key: str
    after_value: str
    end: str
    between: str = ""

    def render(self, call: FunctionCall) -> str:
        """One call; values that are no text are written as JSON."""
        if not isinstance(call.arguments, dict):
            raise TemplateError(
                f"{_NEEDS_OBJECT}, but {call.name!r} is called with {dump(call.arguments)}."
            )
        arguments = "".join(
            self.before_key
            + key
            + self.after_key
            + (value if isinstance(value, str) else dump(value))
            + self.after_value
            for key, value in call.arguments.items()
        )
        return self.before_name + call.name + self.after_name + arguments + self.end

    def as_jinja(self) -> str:
        """Statements that print the list `calls` as `render` does."""
        return (
            "{%- for call in calls %}"
            '{%- set arguments = call["arguments"] %}'
            "{%- if arguments is not mapping %}"
            "{{- raise_exception(" + quote(_NEEDS_OBJECT) + ") }}"
            "{%- endif %}"
            f'{{{{- {quote(self.before_name)} ~ call["name"] ~ {quote(self.after_name)} }}}}'
            "{%- for key, value in arguments.items() %}"
            f"{{{{- {quote(self.before_key)} ~ key ~ {quote(self.after_key)} ~"
            " (value if value is string else value | tojson)"
            f" ~ {quote(self.after_value)} }}}}"
            "{%- endfor %}"
            f"{{{{- {quote(self.end)} ~ ('' if loop.last else {quote(self.between)}) }}}}"
            "{%- endfor %}"
        )

    def read(self, text: str) -> list[FunctionCall]:
        """The calls in `text`, with any whitespace between the tags."""
        call = re.compile(
            f'{_loose(self.before_name)}([^<>\\n"]+?){_loose(self.after_name)}'
            f"((?:(?!{_loose(self.before_name)}).)*?){_loose(self.end)}",
            re.DOTALL,
        )
        argument = re.compile(
            f"{_loose(self.before_key)}(.*?){_loose(self.after_key)}(.*?)"
            f"{_loose(self.after_value)}",
            re.DOTALL,
        )
        return [
            FunctionCall(
                name.strip(),
                {key.strip(): load(value) for key, value in argument.findall(arguments)},
            )
            for name, arguments in call.findall(text)
        ]


def _loose(tag: str) -> str:
    return r"\s*" + r"\s*".join(map(re.escape, tag.split())) + r"\s*" if tag.strip() else r"\s*"


class Glm4MoeTools(ToolFormat):
    """The format of GLM-4.5 to 4.7."""

    after_text = ""
    before = (
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
    )
    after = (
        "\n</tools>\n\nFor each function call, output the function name and arguments within the "
        "following XML format:\n<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n"
        "<arg_value>{arg-value-1}</arg_value>\n<arg_key>{arg-key-2}</arg_key>\n"
        "<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>\n"
    )
    tags = Tags(
        "\n<tool_call>", "", "\n<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>", "", "\n"
    )
    tools_jinja = list_tools_jinja(before, after)
    calls_jinja = tags.as_jinja()

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """The tools as lines of JSON."""
        listed = "".join("\n" + dump(wrapped(tool)) for tool in tools)
        return self.before + listed + self.after

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """Calls without a closing tag: the turn ends instead."""
        return self.tags.between.join(map(self.tags.render, calls))

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads calls with or without their closing tag."""
        calls = []
        for part in text.split("<tool_call>")[1:]:
            name, opening, rest = part.partition("</tool_call>")[0].partition("<arg_key>")
            arguments = _GLM_ARGUMENT.findall(opening + rest)
            calls.append(
                FunctionCall(name.strip(), {key.strip(): load(value) for key, value in arguments})
            )
        return calls


class MiniMax2Tools(ToolFormat):
    """The format of MiniMax M2."""

    before = (
        "\n\n# Tools\n\nYou may call one or more tools to assist with the user query.\n"
        "Here are the tools available in JSONSchema format:\n\n<tools>\n"
    )
    after = (
        "</tools>\n\nWhen making tool calls, use XML format to invoke tools and pass parameters:\n"
        '\n<minimax:tool_call>\n<invoke name="tool-name-1">\n'
        '<parameter name="param-key-1">param-value-1</parameter>\n'
        '<parameter name="param-key-2">param-value-2</parameter>\n...\n</invoke>\n'
        "</minimax:tool_call>"
    )
    tags = Tags(
        '<invoke name="', '">', '\n<parameter name="', '">', "</parameter>", "\n</invoke>", "\n"
    )
    tools_jinja = (
        "{{- " + quote(before) + " }}"
        "{%- for tool in tools %}"
        '{%- set tool = tool["function"] if tool["type"] == "function" else tool %}'
        '{{- "<tool>" ~ (tool | tojson) ~ "</tool>\\n" }}'
        "{%- endfor %}"
        "{{- " + quote(after) + " }}"
    )
    calls_jinja = tags.as_jinja()

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """The tools as lines of JSON in tags."""
        listed = "".join(f"<tool>{dump(bare(tool))}</tool>\n" for tool in tools)
        return self.before + listed + self.after

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """An invocation for each call."""
        return self.tags.between.join(map(self.tags.render, calls))

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads the invocations, inside their outer tag or not."""
        return self.tags.read(text)


class SeedTools(ToolFormat):
    """The format of Seed-OSS."""

    after_text = ""
    before = (
        "system\nYou are Doubao, a helpful AI assistant. You may call one or more functions to "
        "assist with the user query.Tool List:\nYou are authorized to use the following tools "
        "(described in JSON Schema format). Before performing any task, you must decide how to "
        "call them based on the descriptions and parameters of these tools.\n"
    )
    after = (
        "\n工具调用请遵循如下格式:\n<seed:tool_call>\n<function=example_function_name>\n"
        "<parameter=example_parameter_1>value_1</parameter>\n<parameter=example_parameter_2>"
        "This is the value for the second parameter\nthat can span\nmultiple lines</parameter>\n"
        "</function>\n</seed:tool_call>\n"
    )
    tags = Tags(
        "\n<seed:tool_call>\n<function=",
        ">",
        "\n<parameter=",
        ">",
        "</parameter>",
        "\n</function>\n</seed:tool_call>",
        "\n",
    )
    tools_jinja = "{{- " + quote(before) + " ~ (tools | tojson) ~ " + quote(after) + " }}"
    calls_jinja = tags.as_jinja()

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """The list as it was given."""
        return self.before + dump(list(tools)) + self.after

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """A tagged function for each call."""
        return self.tags.between.join(map(self.tags.render, calls))

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads the tagged functions."""
        return self.tags.read(text)


class Qwen35Tools(ToolFormat):
    """The format of Qwen 3.5."""

    after_text = "\n\n"
    before = "\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>"
    after = (
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
    tags = Tags(
        "<tool_call>\n<function=",
        ">",
        "\n<parameter=",
        ">\n",
        "\n</parameter>",
        "\n</function>\n</tool_call>",
        "\n",
    )
    tools_jinja = (
        "{{- " + quote(before) + " }}"
        "{%- for tool in tools %}"
        '{{- "\\n" ~ ((tool["function"] if tool["type"] == "function" else tool) | tojson) }}'
        "{%- endfor %}"
        "{{- " + quote(after) + " }}"
    )
    calls_jinja = tags.as_jinja()

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """The tools as lines of JSON, without their wrapping."""
        return self.before + "".join("\n" + dump(bare(tool)) for tool in tools) + self.after

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """A tagged function for each call."""
        return self.tags.between.join(map(self.tags.render, calls))

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads the tagged functions."""
        return self.tags.read(text)


TOOL_FORMATS.register("glm4_moe")(Glm4MoeTools())
TOOL_FORMATS.register("minimax2")(MiniMax2Tools())
TOOL_FORMATS.register("seed_oss")(SeedTools())
TOOL_FORMATS.register("qwen3_5")(Qwen35Tools())
