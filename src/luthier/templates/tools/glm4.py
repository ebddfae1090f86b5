"""Tools in a Chinese system text, a call as a name and a line of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.errors import TemplateError
from luthier.templates.slots import quote
from luthier.templates.tool_format import TOOL_FORMATS, FunctionCall, ToolFormat, bare, dump, load

_HEAD = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
_USE = "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
_ONE_CALL = "tool format glm4 writes one call a turn"


class Glm4Tools(ToolFormat):
    """The format of ChatGLM 3, GLM-4 and GLM-Z1."""

    takes_text = False
    tools_jinja = (
        "{{- " + quote(_HEAD) + " }}"
        "{%- for tool in tools %}"
        '{%- set tool = tool["function"] if tool["type"] == "function" else tool %}'
        '{{- "\\n\\n## " ~ tool["name"] ~ "\\n\\n" ~ (tool | tojson(indent=4)) ~ '
        + quote(_USE)
        + " }}"
        "{%- endfor %}"
    )
    calls_jinja = (
        "{%- if calls | length > 1 %}"
        "{{- raise_exception(" + quote(_ONE_CALL) + ") }}"
        "{%- endif %}"
        '{%- set arguments = calls[0]["arguments"] %}'
        '{{- calls[0]["name"] ~ "\\n" ~'
        " (arguments if arguments is string else arguments | tojson) }}"
    )

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """A section for each tool."""
        sections = (
            f"\n\n## {tool['name']}\n\n{dump(tool, indent=4)}{_USE}" for tool in map(bare, tools)
        )
        return _HEAD + "".join(sections)

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """The name, then the arguments.

        Raises:
            TemplateError: if there are several calls.
        """
        if len(calls) != 1:
            raise TemplateError(
                f"{_ONE_CALL}, but a function message holds {len(calls)}.\n"
                "  Put each call into a function message of its own, its observation after it."
            )
        return f"{calls[0].name}\n{dump(calls[0].arguments)}"

    def extract_calls(self, text: str) -> list[FunctionCall]:
        """Reads an answer of two or more lines whose rest is JSON."""
        name, _, written = text.partition("\n")
        arguments = load(written.strip())
        return [] if isinstance(arguments, str) else [FunctionCall(name.strip(), arguments)]


TOOL_FORMATS.register("glm4")(Glm4Tools())
