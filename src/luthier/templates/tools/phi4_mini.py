"""Tools as their JSON between two tokens, calls as in the default format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.templates.tool_format import TOOL_FORMATS, dump, parse_tools
from luthier.templates.tools.default import DefaultTools


class Phi4MiniTools(DefaultTools):
    """The format of Phi-4-mini."""

    describes_none = True
    tools_jinja = '{{- "<|tool|>" ~ (tools | tojson) ~ "<|/tool|>" }}'

    def describe(self, tools: str) -> str:
        """The JSON text as it was given, that of an empty list as well."""
        is_given = parse_tools(tools) or tools.strip() not in ("", "null")
        return f"<|tool|>{tools}<|/tool|>" if is_given else ""

    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """The list as JSON."""
        return f"<|tool|>{dump(list(tools))}<|/tool|>"


TOOL_FORMATS.register("phi4_mini")(Phi4MiniTools())
