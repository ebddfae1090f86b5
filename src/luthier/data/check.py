"""what is wrong with a row, and how many wrong rows a data set may have."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import DataError
from luthier.records import Origin

NUM_LISTED = 10
"""How many wrong rows a message shows."""

EXCERPT_LENGTH = 80
"""The most characters of a row that a message shows."""

UNKNOWN = object()
"""Stands for what a row holds where that is not at hand; null is something that it can hold."""

NOT_UTF8 = "bytes that are not UTF-8"
SAVE_AS_UTF8 = "Save the file as UTF-8."

_NUMBERS = re.compile(r"\[\d+\]")
_STEPS = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")


class RowError(DataError):
    """A row cannot be used.

    Args:
        field: the column, or a path into it such as `messages[2].role`; empty for the whole row.
        reason: what was found, in words that do not depend on the row, so that rows can be
            counted by it.
        fix: what to do.
        found: the row's own part of the reason.
    """

    def __init__(self, field: str, reason: str, fix: str, found: str = "") -> None:
        self.field, self.reason, self.fix, self.found = field, reason, fix, found
        super().__init__(f"{field}: {reason}{found}. {fix}")


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that is left out, where it stands and why."""

    origin: str  # the file and the line on which the row starts
    field: str  # the column, or a path into it; empty for the whole row
    reason: str  # what was found, in words that do not depend on the row
    fix: str  # what to do
    found: str = ""  # the row's own part of the reason
    position: int = 0  # the character of the line at which it is wrong, from 1; 0 for none
    excerpt: str = ""  # the wrong value, or the row, in at most `EXCERPT_LENGTH` characters

    @classmethod
    def of(cls, origin: Origin | None, error: RowError, values: Any = UNKNOWN) -> RowProblem:
        """The problem that `error` tells of the row at `origin`, which holds `values`."""
        shown = "" if values is UNKNOWN else show_value(values, error.field)
        return cls(
            str(origin or ""), error.field, error.reason, error.fix, error.found, excerpt=shown
        )

    @property
    def place(self) -> str:
        """File and line, and the character in it where that is known."""
        return f"{self.origin}:{self.position}" if self.position else self.origin

    @property
    def column(self) -> str:
        """The field without the numbers of messages, so that rows can be counted by it."""
        return _NUMBERS.sub("[]", self.field)

    def __str__(self) -> str:
        place = f"{self.place}, {self.field}" if self.field else self.place
        shown = f" Here: {self.excerpt}" if self.excerpt else ""
        return f"{place}: {self.reason}{self.found}. {self.fix}".rstrip() + shown


def show_value(values: Any, field: str = "", most: int = EXCERPT_LENGTH) -> str:
    """The value at `field` of a row as one short line; the nearest around it when it is absent."""
    at = values
    if isinstance(values, Mapping) and field in values:
        at = values[field]
    else:
        for number, name in _STEPS.findall(field):
            if number and isinstance(at, list) and int(number) < len(at):
                at = at[int(number)]
            elif name and isinstance(at, Mapping) and name in at:
                at = at[name]
            else:
                break
    if isinstance(at, str):
        return shorten(json.dumps(at[:most], ensure_ascii=False), most=most)
    try:
        return shorten(json.dumps(at, ensure_ascii=False, default=str), most=most)
    except (TypeError, ValueError, RecursionError):
        return shorten(f"{type(at).__name__} of {len(at):,}" if isinstance(at, list) else "{...}")


def show_setting(value: Any) -> str:
    """What an argument was set to, for those that compare two runs."""
    return "unset" if value is None or value == [] else str(value)


def shorten(text: str, position: int = 0, most: int = EXCERPT_LENGTH) -> str:
    """At most so many printable characters around `position`."""
    start = max(0, min(position - most // 2, len(text) - most))
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text[start : start + most]
    )
    return shown[:most]


def is_over_budget(num_bad: int, num_rows: int, max_bad_rows: float) -> bool:
    """Whether more rows are wrong than `max_bad_rows`, a share below 1 or a number, allows."""
    return num_bad > (max_bad_rows * num_rows if max_bad_rows < 1 else max_bad_rows)


def refuse_weights(name: str, option: str) -> DataError:
    """Of a data set whose weights cannot reach the loss with an option, streaming or packing."""
    return DataError(
        f"data set {name!r}: some rows or messages have a weight that is neither 0 nor 1, and with "
        f"{option} such weights do not reach the loss. Set {option}: false, or write 0 or 1; if "
        'a column means something else, take "weight" out of "columns" in dataset_info.json.'
    )
