"""the rows of several data sets in the order of the run, from any place of it on.

An epoch draws rows by `mix_strategy`. They come in windows of `buffer_size` rows, each window in an
order of its own, so that to go on inside of one it takes no more than to read that window again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from luthier.data.reader import Position, RawRow, RawRows

WINDOW_BYTES = 128 << 20
"""A window of long rows ends here, however few they are."""

_DRAWS, _ORDER, _FIRST = 1, 2, 3
"""What random numbers are for; each purpose has its own."""

_DRAWN_TOGETHER = 1024


class Rows(Protocol):
    """The rows of a data set."""

    def raw_rows(self, position: Position = None) -> RawRows:
        """Those behind a position, each with the position behind it."""
        ...


class Drawn(NamedTuple):
    """A row on its way.

    Attributes:
        number: of its data set.
        raw: the row.
        is_again: whether it was drawn before, as rows of later passes are.
    """

    number: int
    raw: RawRow
    is_again: bool


@dataclass
class _Reader:
    """Where one data set stands.

    Attributes:
        rows: its rows.
        limit: rows of a pass; None for all there are.
        is_filled: whether a pass of fewer rows begins again until it has `limit`.
    """

    rows: Rows
    limit: int | None = None
    is_filled: bool = False
    num_taken: int = 0
    position: Position = None
    is_again: bool = False
    is_done: bool = False
    _reading: RawRows | None = field(default=None, repr=False)

    def state(self) -> dict[str, Any]:
        return {
            "taken": self.num_taken,
            "position": self.position,
            "again": self.is_again,
            "done": self.is_done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.num_taken, self.position = state["taken"], state["position"]
        self.is_again, self.is_done = state["again"], state["done"]
        self._reading = None

    def begin(self) -> None:
        """A new pass; its rows were drawn before, unless none was."""
        self.is_again = self.is_again or self.position is not None
        self.num_taken, self.position, self.is_done, self._reading = 0, None, False, None

    def next(self) -> Drawn | None:
        """The next row of the pass; None at its end. The number is for the mixer to set."""
        if self.limit is not None and self.num_taken >= self.limit:
            return None
        if self._reading is None:
            self._reading = self.rows.raw_rows(self.position)
        found = next(self._reading, None)
        if found is None and self.is_filled and self.position is not None:
            self.position, self.is_again = None, True
            self._reading = self.rows.raw_rows()
            found = next(self._reading, None)
        if found is None:
            return None
        raw, self.position = found
        self.num_taken += 1
        return Drawn(0, raw, self.is_again)


class Mixture:
    """Draws rows of several data sets, one epoch after the other.

    Args:
        sets: the rows of each, none of them empty.
        strategy: the value of `mix_strategy`.
        shares: how often each is drawn from when interleaving; empty for taking turns.
        seed: where drawing starts.
        limits: rows of a pass over each; None for all.
        filled: whether such a pass begins again where there are fewer rows.
    """

    def __init__(
        self,
        sets: Sequence[Rows],
        strategy: str,
        shares: Sequence[float],
        seed: int,
        limits: Sequence[int | None],
        filled: Sequence[bool],
    ) -> None:
        self.readers = [
            _Reader(rows, limit, is_filled)
            for rows, limit, is_filled in zip(sets, limits, filled, strict=True)
        ]
        self.strategy, self.shares, self.seed = strategy, list(shares), seed
        self.epoch = self.num_draws = 0
        self._numbers: tuple[int, int, Any] = (-1, -1, None)

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        return {
            "epoch": self.epoch,
            "draws": self.num_draws,
            "sets": [reader.state() for reader in self.readers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where it stood."""
        self.epoch, self.num_draws = state["epoch"], state["draws"]
        for reader, one in zip(self.readers, state["sets"], strict=True):
            reader.restore(one)

    def begin_next_epoch(self) -> None:
        """All data sets from their start."""
        self.epoch, self.num_draws = self.epoch + 1, 0
        for reader in self.readers:
            reader.begin()

    def next(self) -> Drawn | None:
        """The next row of the epoch; None at its end."""
        while not all(reader.is_done for reader in self.readers):
            number = self._choose()
            reader = self.readers[number]
            drawn = reader.next()
            if drawn is not None:
                return drawn._replace(number=number)
            if self.strategy == "interleave_under":
                return None
            reader.is_done = True
            if self.strategy == "interleave_over":
                if all(each.is_done for each in self.readers):
                    return None
                reader.begin()
                reader.is_done = True
                drawn = reader.next()
                assert drawn is not None, "a data set has rows"
                return drawn._replace(number=number)
        return None

    def _choose(self) -> int:
        """The data set that the next row is drawn from."""
        readers = self.readers
        if self.strategy == "interleave_over":
            open_ones = list(range(len(readers)))
        else:
            open_ones = [at for at, reader in enumerate(readers) if not reader.is_done]
        if self.strategy == "concat" or len(open_ones) == 1:
            return open_ones[0]
        draw = self.num_draws
        self.num_draws += 1
        shares = [self.shares[at] for at in open_ones] if self.shares else []
        if sum(shares) <= 0:
            return self._take_turns(draw, open_ones)
        point = self._number(draw) * sum(shares)
        for at, share in zip(open_ones, shares, strict=True):
            point -= share
            if point < 0:
                return at
        return max(at for at, share in zip(open_ones, shares, strict=True) if share > 0)

    def _take_turns(self, draw: int, open_ones: Sequence[int]) -> int:
        turn = draw % len(self.readers)
        while turn not in open_ones:
            turn, self.num_draws = (turn + 1) % len(self.readers), self.num_draws + 1
        return turn

    def _number(self, draw: int) -> float:
        """The random number of a draw, from 0 to 1."""
        import numpy

        block = draw // _DRAWN_TOGETHER
        if self._numbers[:2] != (self.epoch, block):
            generator = numpy.random.default_rng([self.seed, self.epoch, _DRAWS, block])
            self._numbers = (self.epoch, block, generator.random(_DRAWN_TOGETHER).tolist())
        return float(self._numbers[2][draw % _DRAWN_TOGETHER])


class Window(NamedTuple):
    """Rows that follow each other in the mixture.

    Attributes:
        place: where the window starts, as JSON.
        rows: in the order in which they are used.
    """

    place: dict[str, Any]
    rows: list[Drawn]


class Windows:
    """The mixture, epoch after epoch, in windows.

    The first window of every epoch but the first is shorter by chance, so that rows meet others.

    Args:
        mixture: draws the rows.
        buffer_size: the most rows of a window.
        is_shuffled: whether the rows of a window change places.
    """

    def __init__(self, mixture: Mixture, buffer_size: int, *, is_shuffled: bool) -> None:
        self.mixture, self.buffer_size, self.is_shuffled = mixture, buffer_size, is_shuffled
        self.number = 0

    def restore(self, place: dict[str, Any]) -> None:
        """The next window is the one that starts there."""
        self.mixture.restore(place["mixture"])
        self.number = place["number"]

    def next(self) -> Window:
        """The next window; one without rows is the last of its epoch."""
        import numpy

        place = {"mixture": self.mixture.state(), "number": self.number}
        key = [self.mixture.seed, self.mixture.epoch]
        most = self.buffer_size
        if self.is_shuffled and most > 1 and self.mixture.epoch and not self.number:
            most = int(numpy.random.default_rng([*key, _FIRST]).integers(1, most))
        rows: list[Drawn] = []
        size = 0
        while len(rows) < most and size < WINDOW_BYTES:
            drawn = self.mixture.next()
            if drawn is None:
                break
            rows.append(drawn)
            size += drawn.raw.size
        self.number += 1
        if not rows:
            self.mixture.begin_next_epoch()
            self.number = 0
        elif self.is_shuffled:
            generator = numpy.random.default_rng([*key, _ORDER, self.number])
            rows = [rows[at] for at in generator.permutation(len(rows)).tolist()]
        return Window(place, rows)
