"""how tools are told to a model, and how its calls of them are written and read back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from luthier.errors import TemplateError
from luthier.records import Message
from luthier.registry import Registry
from luthier.templates.thinking import split_thought

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One call of a tool."""

    name: str  # the tool's
    arguments: Any  # what the model gives it, an object by name as a rule


@dataclass(frozen=True)
class ToolFormat:
    """One way of writing tools and calls: jinja that training runs and a chat template holds."""

    tools_jinja: str  # statements that print what the system text says of `tools`, one or more
    calls_jinja: str
    """Statements that print `calls`, a list of objects with `name` and `arguments`. Arguments that
    are text are taken for JSON."""
    extract_calls: Callable[[str], list[FunctionCall]]
    """The calls in a model's answer; empty when it calls nothing or writes them wrongly."""
    after_text: str = "\n"  # what stands between an answer's text and its calls
    takes_text: bool = True
    """Whether calls are found behind text; if not, none is learned beside them."""
    describes_none: bool = False  # whether an empty list of tools is told, too
    writes_text_bare: bool = False
    """Whether arguments that are text, not an object, stand without quotes."""
    one_call: str = ""  # how the refusal of several calls begins; empty where they are written
    needs_object: str = ""  # how the refusal of arguments that are no object begins

    def describe(self, tools: str) -> str:
        """What the system text says about a JSON list of tools, bare or as `{"type": ...}`."""
        return _describe(self.tools_jinja, tools)

    def render_calls(self, calls: Sequence[FunctionCall]) -> str:
        """The text with which a model calls tools; a TemplateError if it cannot be written."""
        if self.one_call and len(calls) != 1:
            raise TemplateError(
                f"{self.one_call}, but a function message holds {len(calls)}.\n"
                "  Put each call into a function message of its own, its observation after it."
            )
        written = []
        for call in calls:
            arguments = call.arguments
            if self.needs_object and not isinstance(arguments, dict):
                raise TemplateError(
                    f"{self.needs_object}, but {call.name!r} is called with {dump(arguments)}."
                )
            if isinstance(arguments, str) and not self.writes_text_bare:
                arguments = dump(arguments)
            written.append({"name": call.name, "arguments": arguments})
        return _compile(self.calls_jinja).render(calls=written)


@lru_cache(maxsize=256)  # the rows of a data set tend to share their tools
def _describe(tools_jinja: str, tools: str) -> str:
    described = parse_tools(tools)
    return _compile(tools_jinja).render(tools=described) if described else ""


@lru_cache(maxsize=64)
def _compile(text: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment()
    environment.filters["tojson"] = dump
    return environment.from_string(text)


BARE = '(tool["function"] if tool["type"] == "function" else tool)'
"""Jinja for a tool's description without the `{"type": "function"}` around it."""

WRAPPED = '(tool if tool["type"] == "function" else {"type": "function", "function": tool})'
"""Jinja for a tool's description with it."""

UNWRAP = f"{{%- set tool = {BARE[1:-1]} %}}"
"""The statement that makes `tool` a bare one."""


def list_tools(before: str, line: str, after: str = "") -> str:
    """Jinja that prints a text, an expression for each tool, and a text.

    The expression reads `tool`; statements may stand before it, behind ` }}`.
    """
    listed = f"{{{{- {dump(before)} }}}}{{%- for tool in tools %}}{line}{{%- endfor %}}"
    return listed + (f"{{{{- {dump(after)} }}}}" if after else "")


def list_json_calls(
    before: str = "", after: str = "", between: str = "", key: str = "arguments"
) -> str:
    """Jinja that prints each call as a JSON object of `name` and `key`, between two texts."""
    name, arguments = dump(before + '{"name": '), dump(f', "{key}": ')
    ending = '{{- "" if loop.last else ' + dump(between) + " }}" if between else ""
    return (
        '{%- for call in calls %}{%- set arguments = call["arguments"] %}'
        f'{{{{- {name} ~ (call["name"] | tojson) ~ {arguments} ~'
        " (arguments if arguments is string else arguments | tojson)"
        f" ~ {dump('}' + after)} }}}}{ending}{{%- endfor %}}"
    )


TOOL_CALL_WORDS = ("<tool_call>", "</tool_call>")
"""What surrounds a call in most models' answers, and in data sets."""

TOOL_FORMATS: Registry[ToolFormat] = Registry("tool format", "luthier.templates.tools")


def parse_tools(tools: str) -> list[dict[str, Any]]:
    """The tool descriptions of a JSON text, see `check_tools`; none of a blank one or null."""
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
        for place, value, kind in _schema_parts(tool):
            if not isinstance(value, kind):
                wanted = "list" if kind == list | None else "object"
                raise TemplateError(
                    f"{place} of tool {tool['name']!r} is no {wanted}: {_shortened(dump(value))}\n"
                    '  Write "parameters" as {"type": "object", "properties": {"text": {"type": '
                    '"string"}}, "required": ["text"]}.'
                )


def _schema_parts(tool: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Parts of a tool's parameters that have a type in a JSON schema: place, value, type."""
    parameters = tool.get("parameters")
    yield "parameters", parameters, dict | None
    parameters = parameters or {}
    properties = parameters.get("properties")
    yield "parameters.properties", properties, dict | None
    yield "parameters.required", parameters.get("required"), list | None
    for name, schema in (properties or {}).items():
        place = f"parameters.properties.{name}"
        yield place, schema, dict
        yield f"{place}.enum", schema.get("enum"), list | None
        yield f"{place}.items", schema.get("items"), dict | None


def split_calls(
    message: Message, thought_words: tuple[str, str], tool_call_words: tuple[str, str]
) -> Message:
    """A function message of nothing but the JSON of its calls, with all else in `said`.

    The given content is such JSON, with a thought before it or the calls between `tool_call_words`
    and any text around.
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
    """The calls of a function message of JSON with `name` and `arguments`; else a TemplateError."""
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
        arguments = item["arguments"]
        if isinstance(arguments, str) and isinstance(decoded := load(arguments), dict):
            arguments = decoded  # as OpenAI's interface sends them: JSON in a text
        calls.append(FunctionCall(item["name"], arguments))
    return calls


def bare(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool's description without the `{"type": "function"}` around it."""
    inner = tool.get("function") if tool.get("type") == "function" else tool
    return inner if isinstance(inner, dict) else {}


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


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."
