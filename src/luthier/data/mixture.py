"""which row of which data set comes next: concatenated, interleaved, drawn, shuffled, held out.

Rows that are kept are numbers, of which all are known: `draw_rows`, `mix` and `split`. Rows that
are streamed come one after the other: a `Mixture` draws them by `mix_strategy`, and `Windows` of
`buffer_size` rows, each in an order of its own, so that to go on inside of one it takes no more
than to read that window again. Neither way to draw can take the other's place: the order of kept
rows is that of `datasets` and of accelerate's samplers, and to draw it all rows have to be known.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier.data.catalog import DatasetDescription
from luthier.data.reader import Parsed, Position, RawRow, RawRows, Row, RowOrProblem
from luthier.errors import DataError

if TYPE_CHECKING:
    import datasets

    from luthier.data.sources import Source

WINDOW_BYTES = 128 << 20
"""A window of long rows ends here, however few they are."""

EVAL_ROWS, EVAL_ROWS_READ = 4096, 100_000
"""With a share as `val_size` of a stream: the most rows that are evaluated on, and read for it."""

_NUMBERS_TOGETHER = 100_000

_STRATEGIES = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}

_DRAWS, _ORDER, _FIRST = 1, 2, 3
"""What random numbers of a stream are for; each purpose has its own."""

_DRAWN_TOGETHER = 1024

_NO_CONTENT = ("train", "weight")


def draw_rows(num_rows: int, num_samples: int, max_samples: int | None, seed: int) -> Any:
    """The numbers of `num_samples` rows in random order, each once before any is drawn again.

    Only the first `max_samples` of them are kept.
    """
    import numpy

    if not num_rows:
        return numpy.zeros(0, numpy.int64)
    generator = numpy.random.default_rng(seed)
    drawn = generator.permutation(num_rows)[:num_samples]
    more = generator.integers(num_rows, size=num_samples - len(drawn))
    return numpy.concatenate([drawn, more])[:max_samples]


def place_drawn(rows: Any, drawn: Any) -> Any:
    """Where in a data set the drawn rows stand, in the order in which they were drawn.

    `rows` are the row numbers of its examples, ascending; several where a row was split. Rows that
    gave no example have no place.
    """
    import numpy

    starts = numpy.searchsorted(rows, drawn, side="left")
    counts = numpy.searchsorted(rows, drawn, side="right") - starts
    before = numpy.concatenate([[0], numpy.cumsum(counts)[:-1]]) if len(counts) else counts
    within = numpy.arange(counts.sum()) - numpy.repeat(before, counts)
    return numpy.repeat(starts, counts) + within


def mix(lengths: Sequence[int], strategy: str, shares: Sequence[float], seed: int) -> Any:
    """The order of several data sets' rows in one: places where the sets stand one after the other.

    `strategy` and `shares` are `mix_strategy` and `interleave_probs`.

    Raises:
        DataError: if shares are not one for each set, or do not make a distribution.
    """
    import datasets
    import numpy

    if strategy == "concat" or len(lengths) == 1:
        return numpy.arange(sum(lengths))
    if shares and (len(shares) != len(lengths) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
        raise DataError(
            f"interleave_probs: {', '.join(f'{share:g}' for share in shares)} are not the shares "
            f"of {len(lengths)} data sets: one each is expected, none negative, 1 together."
        )
    # Numbers are mixed, not rows: beside rows on disk, `datasets` would write index files.
    starts = numpy.cumsum([0, *lengths])
    numbered = [
        datasets.Dataset.from_dict({"at": numpy.arange(start, start + length)})
        for start, length in zip(starts, lengths, strict=False)
    ]
    mixed = datasets.interleave_datasets(
        numbered,
        probabilities=list(shares) or None,
        seed=seed,
        stopping_strategy=_STRATEGIES[strategy],
    )
    return column_of(mixed, "at")


def split(rows: Any, val_size: float, seed: int) -> tuple[Any, Any]:
    """The places to train on and those to evaluate on, shuffled as `datasets` does it.

    Args:
        rows: the number of the row that stands at each place; where a row stands in several, all
            of them go the same way.
        val_size: a share below 1 of the different rows, else a number of them.
        seed: where the shuffling starts.

    Raises:
        DataError: if one of the two would be empty.
    """
    import numpy

    shuffled = numpy.random.default_rng(seed).permutation(len(rows))
    rows = rows[shuffled]
    first = numpy.sort(numpy.unique(rows, return_index=True)[1])
    num_kept = math.ceil(val_size * len(first)) if val_size < 1 else int(val_size)
    if num_kept >= len(first):
        raise DataError(
            f"val_size {val_size:g} of {len(first):,} rows leaves nothing to train on. Lower it, "
            "or give an eval_dataset."
        )
    is_kept = numpy.isin(rows, rows[first[:num_kept]])
    return shuffled[~is_kept], shuffled[is_kept]


def column_of(dataset: datasets.Dataset, name: str) -> Any:
    """A column of numbers as an array, without a Python object for each of them."""
    import numpy

    parts = dataset.select_columns([name]).with_format("arrow").iter(_NUMBERS_TOGETHER)
    return numpy.concatenate([part[name].to_numpy() for part in parts] or [numpy.zeros(0, int)])


class MixedRow(NamedTuple):
    """A row on its way."""

    number: int  # of its data set
    raw: RawRow
    is_again: bool  # whether it was drawn before, as rows of later passes are


@dataclass
class _Reader:
    """Where one data set stands."""

    source: Source
    limit: int | None = None  # rows of a pass; None for all there are
    is_filled: bool = False  # whether a pass of fewer rows begins again until it has `limit`
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

    def next(self) -> MixedRow | None:
        if self.limit is not None and self.num_taken >= self.limit:
            return None
        if self._reading is None:
            self._reading = self.source.raw_rows(self.position)
        found = next(self._reading, None)
        if found is None and self.is_filled and self.position is not None:
            self.position, self.is_again = None, True
            self._reading = self.source.raw_rows()
            found = next(self._reading, None)
        if found is None:
            return None
        raw, self.position = found
        self.num_taken += 1
        return MixedRow(0, raw, self.is_again)


class Mixture:
    """Draws rows of several data sets, none of them empty, one epoch after the other.

    Args:
        sources: the rows of each.
        strategy: the value of `mix_strategy`.
        shares: how often each is drawn from when interleaving; empty for taking turns.
        seed: where drawing starts.
        asked: the `num_samples` of each: a pass begins again where there are fewer rows.
        most: `max_samples` of a pass.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        strategy: str,
        shares: Sequence[float],
        seed: int,
        asked: Sequence[int | None],
        most: int | None,
    ) -> None:
        self.readers = [
            _Reader(source, most if n is None else min(n, most or n), is_filled=n is not None)
            for source, n in zip(sources, asked, strict=True)
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
        self.epoch, self.num_draws = self.epoch + 1, 0
        for reader in self.readers:
            reader.begin()

    def next(self) -> MixedRow | None:
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
        if sum(shares) <= 0:  # they take turns
            turn = draw % len(readers)
            while turn not in open_ones:
                turn, self.num_draws = (turn + 1) % len(readers), self.num_draws + 1
            return turn
        point = self._number(draw) * sum(shares)
        for at, share in zip(open_ones, shares, strict=True):
            point -= share
            if point < 0:
                return at
        return max(at for at, share in zip(open_ones, shares, strict=True) if share > 0)

    def _number(self, draw: int) -> float:
        """The random number of a draw, from 0 to 1."""
        import numpy

        block = draw // _DRAWN_TOGETHER
        if self._numbers[:2] != (self.epoch, block):
            generator = numpy.random.default_rng([self.seed, self.epoch, _DRAWS, block])
            self._numbers = (self.epoch, block, generator.random(_DRAWN_TOGETHER).tolist())
        return float(self._numbers[2][draw % _DRAWN_TOGETHER])


class Windows:
    """The mixture, epoch after epoch, in windows.

    The first window of every epoch but the first is shorter by chance, so that rows meet others.
    """

    def __init__(self, mixture: Mixture, buffer_size: int, *, is_shuffled: bool) -> None:
        self.mixture, self.buffer_size, self.is_shuffled = mixture, buffer_size, is_shuffled
        self.number = 0

    def restore(self, place: dict[str, Any]) -> None:
        """The next window is the one that starts there."""
        self.mixture.restore(place["mixture"])
        self.number = place["number"]

    def next(self) -> tuple[dict[str, Any], list[MixedRow]]:
        """Where the next window starts, as JSON, and its rows in the order of their use.

        One without rows is the last of its epoch.
        """
        import numpy

        place = {"mixture": self.mixture.state(), "number": self.number}
        key = [self.mixture.seed, self.mixture.epoch]
        most = self.buffer_size
        if self.is_shuffled and most > 1 and self.mixture.epoch and not self.number:
            most = int(numpy.random.default_rng([*key, _FIRST]).integers(1, most))
        rows: list[MixedRow] = []
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
        return place, rows


@dataclass(frozen=True)
class HeldOut:
    """A share of all contents, or some of them.

    A row is known by what is read of it: numbers and other columns that nobody reads do not make
    it another one, so that the same conversation is never trained and evaluated on.
    """

    columns: tuple[tuple[str, ...], ...]  # those that are read of each data set
    share: float = 0.0  # of all contents
    contents: frozenset[int] = frozenset()  # those that are held out beside

    def content(self, number: int, row: RowOrProblem) -> int | None:
        """A hash of what is read of a row, below 2**64; None where it is no object."""
        if not isinstance(row, Row) or not isinstance(row.values, Mapping):
            return None
        values = {name: row.values.get(name) for name in self.columns[number]}
        content = {name: value for name, value in values.items() if value not in (None, "")}
        text = json.dumps(content, sort_keys=True, default=str)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

    def holds(self, number: int, row: RowOrProblem) -> bool:
        """Whether a row of the data set of that number is kept for evaluation."""
        content = self.content(number, row)
        return content is not None and (content < self.share * 2**64 or content in self.contents)


def hold_out(
    mixture: Mixture, descriptions: Sequence[DatasetDescription], size: float
) -> tuple[list[MixedRow], HeldOut, str]:
    """The rows of a stream that `val_size` keeps: a share of all contents, or the first so many.

    Returns:
        Rows that are evaluated on, the rule that keeps them out of training, and what is said.

    Raises:
        DataError: if none is kept, or all are.
    """
    columns = tuple(
        tuple(name for part, name in one.columns_read().items() if part not in _NO_CONTENT)
        for one in descriptions
    )
    rule = HeldOut(columns, share=size if size < 1 else 0.0)
    most = int(size) if size >= 1 else EVAL_ROWS
    kept: dict[int, MixedRow] = {}
    num_read = 0
    while len(kept) < most and (size >= 1 or num_read < EVAL_ROWS_READ):
        drawn = mixture.next()
        if drawn is None:
            break
        num_read += 1
        row = drawn.raw.row()
        content = rule.content(drawn.number, row)
        if content is not None and (size >= 1 or rule.holds(drawn.number, row)):
            kept.setdefault(content, drawn._replace(raw=Parsed(row, drawn.raw.size)))
    if size < 1:
        if not kept:
            raise DataError(
                f"val_size {size:g}: none of the first {num_read:,} rows is held out. Raise "
                "it, or give an eval_dataset."
            )
        line = (
            f"val_size: {size:.3g} of all rows, by a hash of their content, are never trained "
            f"on; {len(kept):,} of them, found in the first {num_read:,} rows, are evaluated on"
        )
        return list(kept.values()), rule, line
    if mixture.next() is None:
        raise DataError(
            f"val_size {size:g} of {num_read:,} rows leaves nothing to train on. Lower it, or "
            "give an eval_dataset."
        )
    line = (
        f"val_size: the first {len(kept):,} different rows are evaluated on; they, and others "
        "of the same content, are never trained on"
    )
    return list(kept.values()), HeldOut(columns, contents=frozenset(kept)), line
