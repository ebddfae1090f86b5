"""how tools are told to a model, and how its calls of them are written and read back."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from luthier.errors import TemplateError
from luthier.records import Message
from luthier.registry import Registry
from luthier.templates.thinking import split_thought


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One call of a tool.

    Attributes:
        name: the tool's.
        arguments: what the model gives it, an object by name as a rule.
    """

    name: str
    arguments: Any


class ToolFormat(ABC):
    """One way of writing tools and calls, in Python and in jinja alike.

    Attributes:
        tools_jinja: jinja statements that print what `describe_tools` gives, reading `tools`.
        calls_jinja: jinja statements that print what `render_calls` gives, reading `calls`, a list
            of objects with `name` and `arguments`. Arguments that are text are taken for JSON.
        after_text: what stands between an answer's text and its calls.
        takes_text: whether calls are found behind text; if not, none is learned beside them.
        describes_none: whether an empty list of tools is told, too.
    """

    tools_jinja: ClassVar[str]
    calls_jinja: ClassVar[str]
    after_text: ClassVar[str] = "\n"
    takes_text: ClassVar[bool] = True
    describes_none: ClassVar[bool] = False

    def describe(self, tools: str) -> str:
        """What the system text says about the tools.

        Args:
            tools: a JSON list of descriptions, bare or wrapped as `{"type": "function", ...}`.

        Raises:
            TemplateError: if it is not such a list.
        """
        described = parse_tools(tools)
        return self.describe_tools(described) if described else ""

    @abstractmethod
    def describe_tools(self, tools: Sequence[dict[str, Any]]) -> str:
        """The text for a list of one or more tools."""

    @abstractmethod
    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """The text with which a model calls tools."""

    @abstractmethod
    def extract_calls(self, text: str) -> list[FunctionCall]:
        """The calls in a model's answer; empty when it calls nothing or writes them wrongly."""


TOOL_CALL_WORDS = ("<tool_call>", "</tool_call>")
"""What surrounds a call in most models' answers, and in data sets."""

TOOL_FORMATS: Registry[ToolFormat] = Registry("tool format", "luthier.templates.tools")


def parse_tools(tools: str) -> list[dict[str, Any]]:
    """The tool descriptions of a JSON text; none of a blank one or of null.

    Raises:
        TemplateError: if it is not a list of objects, each with a name, or their parameters are no
            JSON schema.
    """
    try:
        described = json.loads(tools) if tools.strip() else []
    except json.JSONDecodeError as error:
        raise TemplateError(
            f"the tools are not JSON ({error}): {_shortened(tools)}\n"
            '  A list is expected, such as [{"name": "search", "parameters": {...}}].'
        ) from error
    described = [] if described is None else described
    check_tools(described)
    return described


def check_tools(described: Any) -> None:
    """Refuses what is no list of tool descriptions.

    Raises:
        TemplateError: if it is not a list of objects, each with a name, or their parameters are no
            JSON schema.
    """
    if not isinstance(described, list) or not all(
        isinstance(tool, dict) and isinstance(bare(tool).get("name"), str) for tool in described
    ):
        raise TemplateError(
            f"the tools are not a list of descriptions with names: {_shortened(dump(described))}\n"
            '  Write them as [{"name": "search", "parameters": {...}}] or as '
            '[{"type": "function", "function": {...}}].'
        )
    for tool in map(bare, described):
        for place, value, kind in _find_misshapen(tool):
            raise TemplateError(
                f"{place} of tool {tool['name']!r} is no {kind}: {_shortened(dump(value))}\n"
                '  Write "parameters" as {"type": "object", "properties": {"text": {"type": '
                '"string"}}, "required": ["text"]}.'
            )


def _find_misshapen(tool: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """What of a tool's parameters has another type than in a JSON schema: place, value, type."""
    parameters = tool.get("parameters")
    if not isinstance(parameters, dict | None):
        yield "parameters", parameters, "object"
        return
    properties = (parameters or {}).get("properties")
    if not isinstance(properties, dict | None):
        yield "parameters.properties", properties, "object"
        return
    if not isinstance((parameters or {}).get("required"), list | None):
        yield "parameters.required", (parameters or {})["required"], "list"
    for name, schema in (properties or {}).items():
        place = f"parameters.properties.{name}"
        if not isinstance(schema, dict):
            yield place, schema, "object"
            continue
        for key, kind in (("enum", list), ("items", dict)):
            if not isinstance(schema.get(key), kind | None):
                yield f"{place}.{key}", schema[key], "list" if kind is list else "object"


def split_calls(
    message: Message, thought_words: tuple[str, str], tool_call_words: tuple[str, str]
) -> Message:
    """A function message whose content is nothing but the JSON of its calls.

    Args:
        message: its content is such JSON, with a thought before it or the calls between
            `tool_call_words` and any text around.
        thought_words: what opens and closes a thought.
        tool_call_words: what opens and closes a call.

    Returns:
        The message with all else in `said`.
    """
    content, around = message.content.strip(), ""
    if content[:1] in ("{", "["):
        return message
    opening, closing = map(re.escape, tool_call_words)
    marked = re.compile(f"\n?{opening}(.*?){closing}", re.DOTALL)
    if calls := marked.findall(content):
        around = marked.sub("", content)
        content = calls[0] if len(calls) == 1 else f"[{', '.join(calls)}]"
    else:
        rest = split_thought(content, thought_words)[1]
        around, content = content[: len(content) - len(rest)], rest
    return replace(message, content=content, said=message.said + around)


def read_calls(message: Message) -> list[FunctionCall]:
    """The calls of a function message whose content is nothing but their JSON.

    Raises:
        TemplateError: if it is not JSON with `name` and `arguments`.
    """
    text = message.content
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise TemplateError(
            f"a function message is not JSON ({error}): {_shortened(text)}\n"
            '  One call is {"name": "search", "arguments": {...}}; several are a list of them.'
        ) from error
    listed = found if isinstance(found, list) else [found]
    flat = [item for one in listed for item in (one if isinstance(one, list) else [one])]
    calls = []
    for item in flat:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise TemplateError(
                f"a function message has a call without a name: {_shortened(text)}\n"
                '  A call is {"name": "search", "arguments": {...}}.'
            )
        if "arguments" not in item:
            raise TemplateError(
                f"the call of {item['name']!r} has no arguments: {_shortened(text)}\n"
                '  Write {"name": ..., "arguments": {}} for a call without any.'
            )
        calls.append(FunctionCall(item["name"], _decoded(item["arguments"])))
    return calls


def bare(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool's description without the `{"type": "function"}` around it."""
    inner = tool.get("function") if tool.get("type") == "function" else tool
    return inner if isinstance(inner, dict) else {}


def wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool's description with `{"type": "function"}` around it."""
    return tool if tool.get("type") == "function" else {"type": "function", "function": tool}


def dump(value: object, indent: int | None = None) -> str:
    """JSON text with the letters of all scripts as they are."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def load(text: str) -> Any:
    """The value of a JSON text, or the text itself when it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def read_objects(texts: Sequence[str], key: str = "arguments") -> list[FunctionCall]:
    """Calls from JSON objects with `name` and `key`; empty if one of them is something else."""
    calls = []
    for text in texts:
        found = load(text)
        for item in found if isinstance(found, list) else [found]:
            if not isinstance(item, dict) or "name" not in item or key not in item:
                return []
            calls.append(FunctionCall(item["name"], item[key]))
    return calls


def _decoded(arguments: Any) -> Any:
    """Arguments as OpenAI's interface sends them, JSON in a text, become the object they encode."""
    if not isinstance(arguments, str):
        return arguments
    decoded = load(arguments)
    return decoded if isinstance(decoded, dict) else arguments


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."
