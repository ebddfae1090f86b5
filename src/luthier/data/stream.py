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
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, fields
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier import console
from luthier.data.check import NUM_LISTED, check_budget, is_over_budget, refuse_weights
from luthier.data.encode import OVERLONG
from luthier.data.mixture import Drawn, HeldOut, Windows
from luthier.data.reader import Row, parse
from luthier.data.report import Counts, SetReport, nothing_left
from luthier.data.road import Encoding
from luthier.data.workers import start_pool
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

LEAST_ROWS = 1000
"""A share of bad rows is one of so many at least, as long as not all rows were seen."""


class EncodedRows(NamedTuple):
    """What became of some rows.

    Attributes:
        table: a row for each example.
        counts: by the number of the data set; rows that were drawn before are not counted again.
    """

    table: Any
    counts: dict[int, Counts]


@dataclass(frozen=True)
class MixedEncoding:
    """How the rows of several data sets are encoded; it goes to other processes.

    Attributes:
        names: of the data sets, for messages.
        encodings: one for each data set.
        packer: puts examples together; None where each is one.
        held_out: rows that are not trained on.
    """

    names: tuple[str, ...]
    encodings: tuple[Encoding, ...]
    packer: Packer | None = None
    held_out: HeldOut | None = None

    def encode(self, rows: Sequence[Drawn]) -> EncodedRows:
        """The examples of the rows, in their order."""
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
            if self.held_out is not None:
                holds = self.held_out.holds
                read = [
                    (at, row)
                    for at, row in read
                    if not (isinstance(row, Row) and holds(number, row.values))
                ]
            if len(read) < len(members):
                counted.num_read += len(members) - len(read)
                counted.leave_out(KEPT_FOR_EVALUATION, len(members) - len(read))
            batch = self.encodings[number].encode([row for _, row in read], 0, counted)
            if WEIGHTS in batch.schema.names:
                refuse_weights(self.names[number], "streaming")
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
        return EncodedRows(table, counts)

    def keep(self, rows: Sequence[Drawn]) -> ExampleSet:
        """The same of many rows, in memory.

        Raises:
            DataError: if no row can be used.
        """
        import datasets
        import pyarrow

        parts = [
            self.encode(rows[at : at + ROWS_OF_A_CHUNK]).table
            for at in range(0, len(rows), ROWS_OF_A_CHUNK)
        ]
        table = pyarrow.concat_tables(parts)
        if not len(table):
            raise DataError(
                "val_size: none of the rows that are held out can be used; see data check."
            )
        return ExampleSet(datasets.Dataset(table.combine_chunks()))


@dataclass(frozen=True)
class _Chunk:
    """Rows that are encoded together; none where an epoch ends.

    Attributes:
        window: the place of their window.
        start: the number of the first in it.
        rows: in the order in which they are used.
    """

    window: dict[str, Any]
    start: int
    rows: list[Drawn]


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
        self._pool: ProcessPoolExecutor | None = None
        self._made: Iterator[tuple[_Chunk, EncodedRows | None]] | None = None
        self.num_examples = None
        self._made_table: pyarrow.Table | None = None
        self._used = self._num_used = 0
        self._num_taken = 0
        self._behind: deque[tuple[int, dict[str, Any]]] = deque()
        self._next: int | None = None
        self._origins: deque[dict[int, str]] = deque(maxlen=NUM_REMEMBERED)

    def take(self, count: int) -> list[Example]:
        rows = iter(self._begin().mixture.next, None)
        found: list[Example] = []
        while len(found) < count and (together := list(islice(rows, ROWS_OF_A_CHUNK))):
            found += read_examples(
                self.encoding.encode(together).table.slice(0, count - len(found))
            )
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
                f"\n  {name} {_shown(were.get(name))}, now {_shown(value)}"
                for name, value in self.settings.items()
                if were.get(name) != value
            ]
            if differing:
                raise DataError(
                    "the checkpoint stands in a stream that was read otherwise:"
                    f"{''.join(differing)}\nSet it back to go on behind the last example, or set "
                    "ignore_data_skip: true to go on with the first one."
                )
        self._num_taken, self._behind = 0, deque()
        self._next = None
        self._origins.clear()
        self._made_table, self._used, self._num_used = None, 0, 0
        for number, report in enumerate(self.reports):
            counts = Counts() if state is None else Counts(**deepcopy(state["counts"][number]))
            for one in fields(Counts):
                setattr(report, one.name, getattr(counts, one.name))
        if self.num_workers:
            self._pool = start_pool(self.num_workers, _keep, self.encoding)
        self._made = self._make(self._chunks(state))
        if state is None:
            return
        self._chunk, made = next(self._made)  # its rows were counted already
        assert made is not None, "a chunk has rows"
        self._made_table, self._used, self._num_used = made.table, state["used"], 1
        self.epoch = self._chunk.window["mixture"]["epoch"]
        if self._used > len(made.table):
            raise DataError(
                "the checkpoint stands behind examples that are not there: rows are encoded in "
                "another way than before. Set template, cutoff_len and tokenizer back, or set "
                "ignore_data_skip: true to go on with the first example."
            )

    def close(self) -> None:
        """Ends the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._made = None

    def next(self, count: int) -> pyarrow.Table:
        """The next examples, which are used up.

        Raises:
            DataError: if too many rows are wrong, or none is left to learn from.
        """
        import pyarrow

        parts = []
        missing = count
        while missing:
            if self._made_table is None or self._used == len(self._made_table):
                self._open_next()
                continue
            part = self._made_table.slice(self._used, missing)
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
            yield (
                f"data set {report.name!r}: {report.num_read:,} rows read, {report.num_kept:,} "
                f"kept, {report.num_skipped:,} skipped, {report.num_rows_cut:,} cut{cut}{left_out}"
                f"{f'; pass {self.epoch + 1:,}' if self.epoch else ''}"
            )

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

    def _make(self, chunks: Iterator[_Chunk]) -> Iterator[tuple[_Chunk, EncodedRows | None]]:
        """Chunks with their examples, a few ahead of what is asked for."""
        if self._pool is None:
            for chunk in chunks:
                yield chunk, self.encoding.encode(chunk.rows) if chunk.rows else None
            return
        waiting: deque[tuple[_Chunk, Future[EncodedRows] | None]] = deque()
        num_waiting = self.num_workers * self.num_ahead
        try:
            while True:
                while len(waiting) < num_waiting:
                    chunk = next(chunks)
                    sent = [one._replace(raw=one.raw.to_send()) for one in chunk.rows]
                    waiting.append((chunk, self._pool.submit(_encode, sent) if sent else None))
                    chunk.rows.clear()
                chunk, future = waiting.popleft()
                yield chunk, future.result() if future is not None else None
        except BrokenProcessPool as error:
            raise DataError(
                "a process that encoded data was killed, most often because memory ran out. Start "
                f"again with fewer workers than {self.num_workers}."
            ) from error

    def _open_next(self) -> None:
        """The next chunk takes the place of the used one."""
        assert self._made is not None, "start() comes first"
        self._chunk, made = next(self._made)
        if made is None:
            self._end_epoch()
            return
        self._made_table, self._used = made.table, 0
        for number, counts in made.counts.items():
            self._count(self.reports[number], counts)

    def _end_epoch(self) -> None:
        if not self._num_used:
            raise nothing_left(self.reports)
        self._num_used = 0
        if not self.epoch:
            for report in self.reports:
                check_budget(
                    report.name,
                    report.num_read,
                    report.skipped,
                    report.problems,
                    self.data.max_bad_rows,
                )
        self.epoch = self._chunk.window["mixture"]["epoch"] + 1
        console.info(f"pass {self.epoch:,} over the data is done; rows come in another order now")

    def _count(self, report: SetReport, counts: Counts) -> None:
        """Adds counts, says what is wrong, and ends the run where too much is."""
        num_said, data = report.num_skipped, self.data
        was_long = bool(report.num_rows_cut or report.left_out.get(OVERLONG))
        for remark in counts.remarks.keys() - report.remarks.keys():
            console.info(f"data set {report.name!r}: {remark}; such rows are counted")
        report.add(counts)
        for problem in counts.problems[: max(NUM_LISTED - num_said, 0)]:
            console.warn(f"data set {report.name!r}: {problem}")
        if num_said < NUM_LISTED <= report.num_skipped:
            console.warn(f"data set {report.name!r}: further bad rows are counted, not shown")
        if not was_long and (counts.num_rows_cut or OVERLONG in counts.left_out):
            console.warn(
                f"data set {report.name!r}: rows are longer than cutoff_len {data.cutoff_len:,} "
                f"(here {counts.longest:,} tokens); they are counted"
            )
        if OVERLONG in report.left_out and data.on_overlong == "error":
            raise DataError(
                f"data set {report.name!r}: a row is longer than cutoff_len "
                f"{data.cutoff_len:,}: it has {report.longest:,} tokens; on_overlong: error "
                "allows none. Raise cutoff_len, or set on_overlong to truncate, drop or split."
            )
        num_rows = max(report.num_read, LEAST_ROWS)
        if is_over_budget(report.num_skipped, num_rows, data.max_bad_rows):
            check_budget(
                report.name, report.num_read, report.skipped, report.problems, data.max_bad_rows
            )


def _shown(value: Any) -> str:
    return "unset" if value is None or value == [] else str(value)


_encoding: MixedEncoding | None = None


def _keep(encoding: MixedEncoding) -> None:
    global _encoding
    _encoding = encoding


def _encode(rows: Sequence[Drawn]) -> EncodedRows:
    assert _encoding is not None
    return _encoding.encode(rows)
