"""which rows of a stream are kept for evaluation, known from their content alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.catalog import DatasetDescription

_NO_CONTENT = ("train", "weight")


@dataclass(frozen=True)
class HeldOut:
    """A share of all contents, or some of them.

    A row is known by what is read of it: numbers and other columns that nobody reads do not make
    it another one, so that the same conversation is never trained and evaluated on.

    Attributes:
        columns: those that are read of each data set.
        share: of all contents.
        contents: those that are held out beside.
    """

    columns: tuple[tuple[str, ...], ...]
    share: float = 0.0
    contents: frozenset[int] = frozenset()

    def holds(self, number: int, values: Any) -> bool:
        """Whether a row of the data set of that number is kept for evaluation."""
        content = content_of(values, self.columns[number])
        return content is not None and (content < self.share * 2**64 or content in self.contents)


def columns_of(description: DatasetDescription) -> tuple[str, ...]:
    """The columns of a data set that are read."""
    read = description.columns_read()
    return tuple(name for part, name in read.items() if part not in _NO_CONTENT)


def content_of(values: Any, columns: Sequence[str]) -> int | None:
    """A hash of what a row holds in these columns, from 0 to 2**64; None where it is no object."""
    if not isinstance(values, Mapping):
        return None
    content = {name: values[name] for name in columns if values.get(name) not in (None, "")}
    text = json.dumps(content, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
