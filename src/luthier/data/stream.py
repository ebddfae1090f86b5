"""the examples of a stream, one after the other, and the state that it takes to go on behind any.

Rows are read in windows and encoded in chunks, ahead of what is used, by this process or by others;
the examples do not depend on which. The state names the window, the chunk in it, and how many of
the chunk's examples were used: going on reads that window and encodes that chunk again, no more.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier import console
from luthier.data.check import refuse_weights, show_setting
from luthier.data.mixture import HeldOut, MixedRow, Windows
from luthier.data.reader import parse
from luthier.data.report import Counts, SetReport, nothing_left
from luthier.data.road import Encoding
from luthier.data.workers import Workers
from luthier.errors import DataError
from luthier.example import WEIGHTS, Example, ExampleSet, as_batch, read_examples

if TYPE_CHECKING:
    import pyarrow

    from luthier.arguments.data import DataArguments
    from luthier.data.pack import Packer

NUM_REMEMBERED = 8
"""How many groups of rows, asked for together, are remembered by where they come from."""

KEPT_FOR_EVALUATION = "kept for evaluation"

ROWS_OF_A_CHUNK, BYTES_OF_A_CHUNK = 256, 1 << 20
"""So many rows at most, or so many bytes and a row, are encoded together."""


@dataclass(frozen=True)
class MixedEncoding:
    """How the rows of several data sets are encoded; it goes to other processes."""

    names: tuple[str, ...]  # of the data sets, for messages
    encodings: tuple[Encoding, ...]  # one for each data set
    packer: Packer | None = None  # puts examples together; None where each is one
    held_out: HeldOut | None = None  # rows that are not trained on

    def encode(self, rows: Sequence[MixedRow]) -> tuple[Any, dict[int, Counts]]:
        """A table of the examples of the rows, in their order, and what became of the rows.

        That is by the number of the data set; rows that were drawn before are not counted again.
        """
        import datasets
        import numpy
        import pyarrow

        groups: dict[tuple[int, bool], list[int]] = {}
        for at, drawn in enumerate(rows):
            groups.setdefault((drawn.number, drawn.is_again), []).append(at)
        counts: dict[int, Counts] = {}
        tables, places = [], []
        for (number, is_again), members in groups.items():
            counted = Counts()
            read = list(zip(members, parse([rows[at].raw for at in members]), strict=True))
            if (held := self.held_out) is not None:
                read = [pair for pair in read if not held.holds(number, pair[1])]
            if num_held := len(members) - len(read):
                counted.num_read += num_held
                counted.leave_out(KEPT_FOR_EVALUATION, num_held)
            batch = self.encodings[number].encode([row for _, row in read], 0, counted)
            if WEIGHTS in batch.schema.names:
                raise refuse_weights(self.names[number], "streaming")
            tables.append(pyarrow.Table.from_batches([batch]))
            kept = numpy.array([at for at, _ in read], numpy.int64)
            places.append(kept[batch.column("row").to_numpy()])
            if not is_again:
                counts[number] = counted
        table = pyarrow.concat_tables(tables, promote_options="default")
        if len(tables) > 1:
            table = table.take(numpy.argsort(numpy.concatenate(places), kind="stable"))
        if self.packer is not None and len(table):
            single = table.drop_columns(["row"]).combine_chunks()  # it numbers rows of this chunk
            blocks = list(self.packer.blocks(datasets.Dataset(single)))
            table = pyarrow.Table.from_batches([as_batch(blocks)])
        return table, counts

    def keep(self, rows: Sequence[MixedRow]) -> ExampleSet:
        """The same of many rows, in memory.

        Raises:
            DataError: if no row can be used.
        """
        import datasets
        import pyarrow

        starts = range(0, len(rows), ROWS_OF_A_CHUNK)
        parts = [self.encode(rows[at : at + ROWS_OF_A_CHUNK])[0] for at in starts]
        table = pyarrow.concat_tables(parts)
        if not len(table):
            raise DataError(
                "val_size: none of the rows that are held out can be used; see data check."
            )
        return ExampleSet(datasets.Dataset(table.combine_chunks()))


class _Chunk(NamedTuple):
    """Rows that are encoded together; none where an epoch ends."""

    window: dict[str, Any]  # the place of their window
    start: int  # the number of the first in it
    rows: list[MixedRow]  # in the order in which they are used


class Stream(ExampleSet):
    """Examples without end; when all rows were used they come again in another order.

    Args:
        begin: gives the windows of the stream from the start.
        encoding: makes examples of rows.
        reports: one for each data set, filled with what becomes of rows when they are met first.
        settings: what decides about the order of rows; a state of other settings is refused.
        data: how many rows may be wrong or too long.
        num_workers: processes that encode; 0 for this one.
        num_ahead: chunks that are encoded ahead for each of them.
    """

    def __init__(
        self,
        begin: Callable[[], Windows],
        encoding: MixedEncoding,
        reports: Sequence[SetReport],
        settings: dict[str, Any],
        data: DataArguments,
        *,
        num_workers: int = 0,
        num_ahead: int = 2,
    ) -> None:
        self._begin, self.encoding, self.reports = begin, encoding, reports
        self.settings, self.data = json.loads(json.dumps(settings)), data
        self.num_workers, self.num_ahead = num_workers, num_ahead
        self.epoch = 0
        self.num_examples = None
        self._workers: Workers[_Chunk, tuple[Any, dict[int, Counts]]] | None = None

    def take(self, count: int) -> list[Example]:
        rows = iter(self._begin().mixture.next, None)
        found: list[Example] = []
        while len(found) < count and (together := list(islice(rows, ROWS_OF_A_CHUNK))):
            found += read_examples(self.encoding.encode(together)[0].slice(0, count - len(found)))
        if not found:
            raise nothing_left(self.reports)
        return found

    def start(self, state: dict[str, Any] | None = None) -> None:
        """Begins, or goes on behind where a state was taken.

        Workers are forked here, so this is for the main thread.

        Args:
            state: what `state` gave.

        Raises:
            DataError: if the state is of other data or settings.
        """
        self.close()
        if state is not None:
            were = state["settings"]
            differing = [
                f"\n  {name} {show_setting(were.get(name))}, now {show_setting(value)}"
                for name, value in self.settings.items()
                if were.get(name) != value
            ]
            if differing:
                raise DataError(
                    "the checkpoint stands in a stream that was read otherwise:"
                    f"{''.join(differing)}\nSet it back to go on behind the last example, or set "
                    "ignore_data_skip: true to go on with the first one."
                )
        self._num_taken, self._behind = 0, deque[tuple[int, dict[str, Any]]]()
        self._next: int | None = None
        self._origins = deque[dict[int, str]](maxlen=NUM_REMEMBERED)
        self._table: Any = None
        self._used = self._num_used = 0
        for number, report in enumerate(self.reports):
            counts = Counts() if state is None else Counts(**deepcopy(state["counts"][number]))
            for one in fields(Counts):
                setattr(report, one.name, getattr(counts, one.name))
        self._workers = Workers(partial(_encode, self.encoding), self.num_workers)
        self._made = self._workers.results(
            self._chunks(state), self.num_ahead, f"workers than {self.num_workers}"
        )
        if state is None:
            return
        self._chunk, (self._table, _) = next(self._made)  # its rows were counted already
        self._used, self._num_used = state["used"], 1
        self.epoch = self._chunk.window["mixture"]["epoch"]
        if self._used > len(self._table):
            raise DataError(
                "the checkpoint stands behind examples that are not there: rows are encoded in "
                "another way than before. Set template, cutoff_len and tokenizer back, or set "
                "ignore_data_skip: true to go on with the first example."
            )

    def close(self) -> None:
        """Ends the workers."""
        if self._workers is not None:
            self._workers.close()
        self._workers = None

    def next(self, count: int) -> pyarrow.Table:
        """The next examples, which are used up.

        Raises:
            DataError: if too many rows are wrong, or none is left to learn from.
        """
        import pyarrow

        parts = []
        missing = count
        while missing:
            if self._table is None or self._used == len(self._table):
                self._open_next()
                continue
            part = self._table.slice(self._used, missing)
            self._used += len(part)
            self._num_used += len(part)
            missing -= len(part)
            parts.append(part)
        self._num_taken += count
        state = {
            "window": self._chunk.window,
            "row": self._chunk.start,
            "used": self._used,
            "counts": [
                {one.name: deepcopy(getattr(report, one.name)) for one in fields(Counts)}
                for report in self.reports
            ],
            "settings": self.settings,
        }
        self._behind.append((self._num_taken, state))
        return pyarrow.concat_tables(parts)

    def __getitem__(self, rows: Sequence[int]) -> list[Example]:
        """The next examples; the first number ever asked for is the next one, whatever it is."""
        first = rows[0] if self._next is None else self._next
        assert list(rows) == list(range(first, first + len(rows))), "a stream has one order"
        self._next = first + len(rows)
        found = read_examples(self.next(len(rows)), rows)
        self._origins.append({each.row: each.origin for each in found})
        return found

    def origins(self, rows: Sequence[int]) -> list[str]:
        """Where some of the last rows come from."""
        known = {row: origin for each in self._origins for row, origin in each.items()}
        return [known.get(row) or f"example {row + 1:,} of the stream" for row in rows]

    def longest(self) -> int:
        """The most that any may have; none is looked at for it."""
        return self.data.cutoff_len

    def fingerprint(self) -> dict[str, Any]:
        """Of what decides about its rows."""
        settings = json.dumps(self.settings, sort_keys=True)
        return {"fingerprint": hashlib.sha256(settings.encode()).hexdigest(), "rows": None}

    def state(self, num_examples: int) -> dict[str, Any] | None:
        """What it takes to go on behind so many examples of those used since `start`.

        Only states behind what one `next` gave are known, and none before the one asked for last.
        """
        while self._behind and self._behind[0][0] < num_examples:
            self._behind.popleft()
        if self._behind and self._behind[0][0] == num_examples:
            return self._behind[0][1]
        return None

    def lines(self) -> Iterator[str]:
        """What became of the rows that were used so far."""
        for report in self.reports:
            left_out = "".join(f", {n:,} {reason}" for reason, n in report.left_out.items())
            cut = f" ({report.num_tokens_cut:,} tokens)" if report.num_rows_cut else ""
            number = f"; pass {self.epoch + 1:,}" if self.epoch else ""
            yield f"{report.line()}{cut}{left_out}{number}"

    def _chunks(self, state: dict[str, Any] | None) -> Iterator[_Chunk]:
        windows = self._begin()
        start = 0
        if state is not None:
            windows.restore(state["window"])
            start = state["row"]
        while True:
            place, rows = windows.next()
            if not rows:
                yield _Chunk(place, 0, [])
            while start < len(rows):
                end, size = start, 0
                while end < len(rows) and end - start < ROWS_OF_A_CHUNK and size < BYTES_OF_A_CHUNK:
                    size += rows[end].raw.size
                    end += 1
                yield _Chunk(place, start, rows[start:end])
                start = end
            start = 0
            rows.clear()  # before the next window is read

    def _open_next(self) -> None:
        """The next chunk takes the place of the used one."""
        assert self._workers is not None, "start() comes first"
        self._chunk, (self._table, counts) = next(self._made)
        self._used = 0
        if not self._chunk.rows:
            self._end_epoch()
        for number, each in counts.items():
            self.reports[number].say_more(each, self.data)

    def _end_epoch(self) -> None:
        if not self._num_used:
            raise nothing_left(self.reports)
        self._num_used = 0
        for report in () if self.epoch else self.reports:
            report.check_budget(self.data)
        self.epoch = self._chunk.window["mixture"]["epoch"] + 1
        console.info(f"pass {self.epoch:,} over the data is done; rows come in another order now")


def _encode(encoding: MixedEncoding, chunk: _Chunk) -> tuple[Any, dict[int, Counts]]:
    return encoding.encode(chunk.rows) if chunk.rows else (None, {})
