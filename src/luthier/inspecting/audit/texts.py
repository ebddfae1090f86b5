"""what stands in the texts of a row and seldom belongs there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.check import RowError


@dataclass(frozen=True)
class Oddity:
    """Something in a text that training takes as it is.

    Attributes:
        reason: what it is.
        pattern: how it is found.
        fix: what to do.
    """

    reason: str
    pattern: re.Pattern[str]
    fix: str


ODDITIES = (
    Oddity(
        "a placeholder left in",
        re.compile(r"\{\{ ?[A-Za-z_][\w .-]{0,40} ?\}\}"),
        "Put the name or the value there that it stands for.",
    ),
    Oddity("a NUL character", re.compile("\0"), "Take it away; texts do not hold it."),
    Oddity(
        "control characters",
        re.compile("[\x01-\x08\x0b\x0e-\x1f\x7f]"),
        "Take them away; only tabs and line breaks belong in a text.",
    ),
    Oddity(
        "replacement characters",
        re.compile("\ufffd"),
        "Letters were lost when the text was decoded; take it from its source again.",
    ),
    Oddity(
        "a byte-order mark in a text",
        re.compile("\ufeff"),
        "Take it away; it comes from a file that was read as plain text.",
    ),
    Oddity(
        "UTF-8 that was read as Latin-1",
        re.compile("â€[™œ\x9d“”¦]|Ã[¤¶¼Ÿ©¨ª§±³]|Â[ °»«]"),
        "Decode the source as UTF-8.",
    ),
)


def special_tokens(tokens: Sequence[str]) -> Oddity | None:
    """Finds texts that the tokenizer reads as one of `tokens`; None when there are none."""
    if not tokens:
        return None
    longest_first = sorted(tokens, key=len, reverse=True)
    return Oddity(
        "a special token in a text",
        re.compile("|".join(map(re.escape, longest_first))),
        "The tokenizer reads it as the token, not as its letters: take it away, or set "
        "split_special_tokens: true.",
    )


def find_oddities(
    values: Mapping[str, Any], columns: Sequence[str], oddities: Sequence[Oddity]
) -> Iterator[RowError]:
    """The first text of a row for each oddity that is in it."""
    waiting = list(oddities)
    for field, text in _texts(values, columns):
        for oddity in tuple(waiting):
            found = oddity.pattern.search(text)
            if found:
                waiting.remove(oddity)
                yield RowError(field, oddity.reason, oddity.fix, f" ({found[0]!r})")
        if not waiting:
            return


def _texts(values: Mapping[str, Any], columns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every text below `columns` with the path to it."""
    stack: list[tuple[str, Any]] = [(column, values.get(column)) for column in reversed(columns)]
    while stack:
        field, value = stack.pop()
        if isinstance(value, str):
            yield field, value
        elif isinstance(value, list):
            stack += [(f"{field}[{at}]", one) for at, one in enumerate(value)][::-1]
        elif isinstance(value, Mapping):
            stack += [(f"{field}.{key}", one) for key, one in value.items()][::-1]
