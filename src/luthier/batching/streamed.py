"""Examples that come one after the other, as a table that is read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


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

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, indices: Sequence[int]) -> Any:
        first = indices[0] if self._next is None else self._next
        assert list(indices) == list(range(first, first + len(indices))), "a stream has one order"
        self._next = first + len(indices)
        return self.stream.take(len(indices))
