"""Examples that come one after the other, as a table that is read once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

NUM_REMEMBERED = 8
"""How many groups of rows, asked for together, are remembered by where they come from."""


class ExampleStream(Protocol):
    """Gives examples in the order in which they are used."""

    def take(self, count: int) -> Any:
        """The next examples as an Arrow table."""
        ...


class StreamedTable:
    """The rows of a stream by their numbers, each asked for once and in order.

    Args:
        stream: gives the rows; the first asked for is the next one, whatever its number.
        num_rows: how many the run uses.
    """

    def __init__(self, stream: ExampleStream, num_rows: int) -> None:
        self.stream, self.num_rows = stream, num_rows
        self._next: int | None = None
        self._origins: deque[tuple[int, list[str]]] = deque(maxlen=NUM_REMEMBERED)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, indices: Sequence[int]) -> Any:
        first = indices[0] if self._next is None else self._next
        assert list(indices) == list(range(first, first + len(indices))), "a stream has one order"
        self._next = first + len(indices)
        found = self.stream.take(len(indices))
        if "origin" in found.column_names:
            self._origins.append((first, found["origin"].to_pylist()))
        return found

    def origin(self, row: int) -> str | None:
        """Where one of the last rows comes from; None for others."""
        for first, origins in self._origins:
            if first <= row < first + len(origins):
                return origins[row - first]
        return None
