"""The words of a command line -> settings: flags as HfArgumentParser reads them, `name=value`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeAlias

from luthier.arguments.files import is_config
from luthier.arguments.legacy import LEGACY
from luthier.arguments.record import Setting, fields, library_types
from luthier.arguments.wording import bare, members

Shape: TypeAlias = Literal["switch", "value", "list"]
"""How many words follow a flag: none or one, one, one or more."""

COMMAND_LINE = "command line"

_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_OVERRIDE = re.compile(r"([A-Za-z_][\w-]*)=")


@cache
def shapes() -> dict[str, Shape]:
    """Every name -> how many words follow its flag."""
    legacy = {name: _shape(type(each.default), each.default) for name, each in LEGACY.items()}
    return legacy | {name: _shape(each.annotation, each.default) for name, each in fields().items()}


@cache
def library_shapes() -> dict[str, Shape]:
    """The same of names that only the installed transformers knows."""
    return {
        name: _shape(annotation, bool in members(annotation) or None)
        for name, annotation in library_types().items()
        if name not in shapes()
    }


def _shape(annotation: Any, default: Any) -> Shape:
    kinds = {bare(part) for part in members(annotation)}
    if bool in kinds and default is not None:
        return "switch"
    return "list" if kinds & {tuple, list} else "value"


def looks_like_flag(word: str) -> bool:
    """Whether a word is a flag, and not a value such as `-1` or `- a text`."""
    name = word.partition("=")[0]
    return name.startswith("-") and name != "-" and " " not in name and not _NUMBER.fullmatch(word)


@dataclass
class Words:
    """What a command line says; `read` sorts its words.

    `--a_b 1`, `--a-b 1`, `--a_b=1` and `a_b=1` say the same. A switch stands alone or takes one
    word; `--no_a_b` turns it off. A list takes all words up to the next flag.
    """

    origin: str = COMMAND_LINE  # where the words stand
    shapes: Mapping[str, Shape] = field(default_factory=shapes)  # every name that is known
    further: Callable[[], Mapping[str, Shape]] = library_shapes
    """Asked for more names when one is not among `shapes`."""
    configs: list[str] = field(default_factory=list)  # configuration files, in order
    given: list[Setting] = field(default_factory=list)  # settings in order; later ones win
    rest: list[str] = field(default_factory=list)  # words that are none of it, in order
    unknown: list[str] = field(default_factory=list)  # the flags among them
    stray: list[str] = field(default_factory=list)  # those that stand alone
    problems: list[str] = field(default_factory=list)  # flags that cannot be read

    def read(self, words: Sequence[str]) -> Words:
        """Sorts words, as the shell hands them on."""
        waiting = self._waiting = list(words)
        while waiting:
            word = waiting.pop(0)
            if word == "--":
                self.rest += waiting
                self.stray += waiting
                break
            if looks_like_flag(word):
                self._read_flag(word)
            elif is_config(word):
                self.configs.append(word)
            elif match := _OVERRIDE.match(word):
                self._give(match[1].replace("-", "_"), word[match.end() :])
            else:
                self.rest.append(word)
                self.stray.append(word)
        return self

    def _read_flag(self, word: str) -> None:
        flag, has_value, value = word.partition("=")
        name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
        positive = name.removeprefix("no_")
        if name not in self.shapes and self.shapes.get(positive) != "switch":
            self.shapes = {**self.shapes, **self.further()}
        shape = self.shapes.get(name)
        if shape is None and positive != name and self.shapes.get(positive) == "switch":
            if has_value:
                self._complain(f"{flag} takes no value; write --{positive}={value}.")
            self._give(positive, "false")
        elif shape is None:
            full = sorted(known for known in self.shapes if name and known.startswith(name))
            words = [word, *([self._waiting.pop(0)] if self._value_follows() else [])]
            if full:
                options = " or ".join(f"--{known}" for known in full[:4])
                self._complain(f"--{name} is shortened; flags are written in full: {options}.")
            else:
                self.unknown.append(word)
                self.rest += words
        elif has_value:
            self._give(name, value)
        elif shape == "switch":
            self._give(name, self._waiting.pop(0) if self._value_follows() else "true")
        elif not self._waiting or looks_like_flag(self._waiting[0]):
            self._complain(f"{flag} expects a value after it.")
        else:
            items = [self._waiting.pop(0)]
            while shape == "list" and self._value_follows():
                items.append(self._waiting.pop(0))
            self._give(name, items[0] if len(items) == 1 else items)

    def _value_follows(self) -> bool:
        following = self._waiting[0] if self._waiting else "-x"
        if looks_like_flag(following) or is_config(following):
            return False
        match = _OVERRIDE.match(following)
        return match is None or match[1].replace("-", "_") not in self.shapes

    def _give(self, name: str, value: str | list[str]) -> None:
        self.given.append(Setting(name, value, self.origin, is_text=True))

    def _complain(self, problem: str) -> None:
        self.problems.append(f"{self.origin}: {problem}")
