"""The words of a command line -> settings: flags as HfArgumentParser reads them, `name=value`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from luthier.arguments.files import is_config
from luthier.arguments.given import Given

Shape: TypeAlias = Literal["switch", "value", "list"]
"""How many words follow a flag: none or one, one, one or more."""

_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_OVERRIDE = re.compile(r"([A-Za-z_][\w-]*)=")


@dataclass
class Words:
    """What a command line says.

    Attributes:
        origin: where the words stand.
        configs: configuration files, in order.
        given: settings in order; later ones win.
        rest: words that are none of it, in order.
        unknown: the flags among them.
        stray: those that stand alone.
        problems: flags that cannot be read.
    """

    origin: str
    configs: list[str] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_words(
    words: Sequence[str],
    origin: str,
    shapes: Mapping[str, Shape],
    further: Callable[[], Mapping[str, Shape]],
) -> Words:
    """Sorts the words of a command line.

    `--a_b 1`, `--a-b 1`, `--a_b=1` and `a_b=1` say the same. A switch stands alone or takes one
    word; `--no_a_b` turns it off. A list takes all words up to the next flag.

    Args:
        words: as the shell hands them on.
        origin: where the words stand.
        shapes: every name that is known.
        further: asked for more names when one is not among `shapes`.
    """
    return _Reader(words, origin, shapes, further).read()


def looks_like_flag(word: str) -> bool:
    """Whether a word is a flag, and not a value such as `-1` or `- a text`."""
    name = word.partition("=")[0]
    return name.startswith("-") and name != "-" and " " not in name and not _NUMBER.fullmatch(word)


class _Reader:
    def __init__(
        self,
        words: Sequence[str],
        origin: str,
        shapes: Mapping[str, Shape],
        further: Callable[[], Mapping[str, Shape]],
    ) -> None:
        self.waiting = list(words)
        self.shapes = shapes
        self.further = further
        self.said = Words(origin)

    def read(self) -> Words:
        while self.waiting:
            word = self.waiting.pop(0)
            if word == "--":
                self._leave(self.waiting)
                break
            if looks_like_flag(word):
                self._flag(word)
            elif is_config(word):
                self.said.configs.append(word)
            elif match := _OVERRIDE.match(word):
                self._give(match[1].replace("-", "_"), word[match.end() :])
            else:
                self._leave([word])
        return self.said

    def _flag(self, word: str) -> None:
        flag, has_value, value = word.partition("=")
        name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
        positive = name.removeprefix("no_")
        if name not in self.shapes and self.shapes.get(positive) != "switch":
            self.shapes = {**self.shapes, **self.further()}
        if name in self.shapes:
            if has_value:
                self._give(name, value)
            else:
                self._take(flag, name)
        elif positive != name and self.shapes.get(positive) == "switch":
            if has_value:
                self._complain(f"{flag} takes no value; write --{positive}={value}.")
            self._give(positive, "false")
        else:
            self._unknown(word, name)

    def _take(self, flag: str, name: str) -> None:
        shape = self.shapes[name]
        if shape == "switch":
            self._give(name, self.waiting.pop(0) if self._value_follows() else "true")
        elif not self.waiting or looks_like_flag(self.waiting[0]):
            self._complain(f"{flag} expects a value after it.")
        else:
            items = [self.waiting.pop(0)]
            while shape == "list" and self._value_follows():
                items.append(self.waiting.pop(0))
            self._give(name, items[0] if len(items) == 1 else items)

    def _unknown(self, word: str, name: str) -> None:
        full = sorted(known for known in self.shapes if name and known.startswith(name))
        words = [word, *([self.waiting.pop(0)] if self._value_follows() else [])]
        if full:
            options = " or ".join(f"--{known}" for known in full[:4])
            self._complain(f"--{name} is shortened; flags are written in full: {options}.")
        else:
            self.said.unknown.append(word)
            self.said.rest += words

    def _value_follows(self) -> bool:
        if not self.waiting or looks_like_flag(self.waiting[0]) or is_config(self.waiting[0]):
            return False
        match = _OVERRIDE.match(self.waiting[0])
        return match is None or match[1].replace("-", "_") not in self.shapes

    def _give(self, name: str, value: str | list[str]) -> None:
        self.said.given.append(Given(name, value, self.said.origin, is_text=True))

    def _leave(self, words: Sequence[str]) -> None:
        self.said.rest += words
        self.said.stray += words

    def _complain(self, problem: str) -> None:
        self.said.problems.append(f"{self.said.origin}: {problem}")
