"""enough of Go's text/template to render what Ollama renders, written from its documentation"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

TOKEN = re.compile(
    r'\s*("(?:\\.|[^"\\])*"|\$\w*(?:\.\w+)*|\.\w+(?:\.\w+)*|\.|:=|=|,|\(|\)|-?\d+|\w+)'
)


@dataclass
class Node:
    """A text, a pipeline that is printed, or a block with branches."""

    kind: str
    words: list[str] = field(default_factory=list)
    text: str = ""
    body: list[Node] = field(default_factory=list)
    other: list[Node] = field(default_factory=list)


def actions(source: str) -> Iterator[tuple[str, str]]:
    """Texts and actions in turn; `{{-` and `-}}` trim the text beside them."""
    at, trims = 0, False
    while at <= len(source):
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        if trims:
            text = text.lstrip()
        if start < 0:
            yield "text", text
            return
        inner = start + 2
        if source.startswith("- ", inner):
            text, inner = text.rstrip(), inner + 1
        end, quoted = inner, False
        while quoted or not source.startswith("}}", end):
            if source[end] == "\\" and quoted:
                end += 1
            elif source[end] == '"':
                quoted = not quoted
            end += 1
        action = source[inner:end]
        trims = action.endswith(" -")
        yield "text", text
        yield "action", action.removesuffix("-").strip()
        at = end + 2


def words_of(action: str) -> list[str]:
    found, at = [], 0
    while at < len(action.rstrip()):
        match = TOKEN.match(action, at)
        assert match, f"not Go: {action[at:]!r}"
        found.append(match[1])
        at = match.end()
    return found


def parse(source: str) -> list[Node]:
    root: list[Node] = []
    stack: list[list[Node]] = [root]
    blocks: list[Node] = []
    for kind, text in actions(source):
        if kind == "text":
            if text:
                stack[-1].append(Node("text", text=text))
            continue
        words = words_of(text)
        if words[0] in ("if", "range"):
            node = Node(words[0], words[1:])
            stack[-1].append(node)
            blocks.append(node)
            stack.append(node.body)
        elif words[0] == "else":
            stack[-1] = blocks[-1].other
            if len(words) > 1:
                node = Node(words[1], words[2:], text="chained")
                stack[-1].append(node)
                blocks.append(node)
                stack.append(node.body)
        elif words[0] == "end":
            while blocks.pop().text == "chained":
                stack.pop()
            stack.pop()
        else:
            stack[-1].append(Node("print", words))
    assert not blocks, "a block without an end"
    return root


def escape(value: Any) -> str:
    """Go's JSON: compact, and with `<`, `>` and `&` as numbers."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _or(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def _and(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "or": _or,
    "and": _and,
    "not": lambda value: not value,
    "eq": lambda one, *others: one in others,
    "ne": lambda one, other: one != other,
    "gt": lambda one, other: one > other,
    "len": len,
    "index": lambda values, at: values[at],
    "slice": lambda values, start: values[start:],
    "json": escape,
}


class Rendering:
    """One rendering: scopes of variables, and what is printed."""

    def __init__(self, root: Any) -> None:
        self.scopes: list[dict[str, Any]] = [{"$": root}]
        self.printed: list[str] = []

    def run(self, nodes: list[Node], dot: Any) -> None:
        self.scopes.append({})
        for node in nodes:
            if node.kind == "text":
                self.printed.append(node.text)
            elif node.kind == "print":
                self.print(node.words, dot)
            elif node.kind == "if":
                self.run(node.body if self.value(node.words, dot) else node.other, dot)
            else:
                self.range(node, dot)
        self.scopes.pop()

    def print(self, words: list[str], dot: Any) -> None:
        if len(words) > 1 and words[1] == ":=":
            self.scopes[-1][words[0]] = self.value(words[2:], dot)
        elif len(words) > 1 and words[1] == "=":
            scope = next(each for each in reversed(self.scopes) if words[0] in each)
            scope[words[0]] = self.value(words[2:], dot)
        else:
            value = self.value(words, dot)
            assert isinstance(value, str), f"{words} prints {value!r}"
            self.printed.append(value)

    def range(self, node: Node, dot: Any) -> None:
        words, names = node.words, []
        if ":=" in words:
            names = [word for word in words[: words.index(":=")] if word != ","]
            words = words[words.index(":=") + 1 :]
        for at, each in enumerate(self.value(words, dot) or []):
            self.scopes.append(dict(zip(names, (at, each), strict=False)))
            self.run(node.body, each)
            self.scopes.pop()

    def value(self, words: list[str], dot: Any) -> Any:
        terms = []
        rest = list(words)
        while rest:
            terms.append(self.term(rest, dot))
        first, *arguments = terms
        if callable(first):
            return first(*arguments)
        assert not arguments, f"{words} calls nothing"
        return first

    def term(self, rest: list[str], dot: Any) -> Any:
        word = rest.pop(0)
        if word == "(":
            depth, inner = 1, []
            while True:
                each = rest.pop(0)
                depth += {"(": 1, ")": -1}.get(each, 0)
                if not depth:
                    break
                inner.append(each)
            value = self.value(inner, dot)
            if rest and re.fullmatch(r"\.\w+(\.\w+)*", rest[0]) and inner[0] == "index":
                value = self.fields(value, rest.pop(0)[1:])
            return value
        if word.startswith('"'):
            return json.loads(word)
        if re.fullmatch(r"-?\d+", word):
            return int(word)
        if word in ("true", "false"):
            return word == "true"
        if word.startswith("$"):
            name, _, path = word.partition(".")
            value = next(each[name] for each in reversed(self.scopes) if name in each)
            return self.fields(value, path)
        if word.startswith("."):
            return self.fields(dot, word[1:])
        return FUNCTIONS[word]

    def fields(self, value: Any, path: str) -> Any:
        for name in filter(None, path.split(".")):
            value = value[name]  # a name that Ollama does not know is an error there, too
        return value


MESSAGE = {"Content": "", "Thinking": "", "ToolCalls": [], "ToolName": ""}


def render(source: str, **values: Any) -> str:
    """What Ollama sends: `Messages` in its own words, `System` that of the system messages."""
    messages = [MESSAGE | each for each in values.get("Messages", [])]
    system = "\n\n".join(each["Content"] for each in messages if each["Role"] == "system")
    empty = {"System": system, "Tools": [], "Think": False, "IsThinkSet": False}
    rendering = Rendering(empty | values | {"Messages": messages})
    rendering.run(parse(source), rendering.scopes[0]["$"])
    return "".join(rendering.printed)
