"""stretches of rows -> shards of encoded examples, by one process or several."""

from __future__ import annotations

import gc
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from luthier.data.cache import Shard, Store, write_shard
from luthier.data.check import RowError, RowProblem
from luthier.data.encode import UNLEARNED, Encoder, Example, LeftOut, Outcome
from luthier.data.formats.fields import refuse_media
from luthier.data.formats.registry import FORMATS, Format, Reading
from luthier.data.report import Counts
from luthier.data.rows import RowOrProblem
from luthier.data.stretches import Stretch
from luthier.data.workers import start_pool
from luthier.errors import DataError
from luthier.records import IGNORE_INDEX, Conversation, Origin
from luthier.templates.fit import kind_of
from luthier.templates.template import Template

if TYPE_CHECKING:
    import pyarrow

Purpose: TypeAlias = Literal["learn", "answer"]
"""Whether rows are encoded to learn from, or as prompts to answer."""

T = TypeVar("T")

ONLY_ASKED = "no answer, only generated from"
NUM_WAITING = 2
"""Stretches that are read ahead for each worker."""


def schema(*, has_weights: bool = False) -> pyarrow.Schema:
    """The columns of a shard.

    `row` numbers the rows that are used, so that the two purposes can be matched; several examples
    of one row have its number. `weights` is there only where some row has them.
    """
    import pyarrow

    integers = pyarrow.list_(pyarrow.int32())
    columns = {
        "input_ids": integers,
        "labels": integers,
        "num_tokens": pyarrow.int32(),
        "num_learned": pyarrow.int32(),
        "origin": pyarrow.string(),
        "row": pyarrow.int64(),
    }
    if has_weights:
        columns["weights"] = pyarrow.list_(pyarrow.float32())
    return pyarrow.schema(columns)


class Makes(Protocol):
    """How shards are made; it goes to other processes."""

    def make(self, task: Task, folder: Path) -> Shard:
        """Writes one shard."""
        ...


@dataclass(frozen=True)
class Work:
    """How shards of conversations are made.

    Attributes:
        encoder: encodes conversations.
        reading: reads rows; what it remarks is counted for each shard.
        purpose: for what.
        batch_size: rows that are encoded together.
    """

    encoder: Encoder
    reading: Reading
    purpose: Purpose
    batch_size: int

    def make(self, task: Task, folder: Path) -> Shard:
        """Writes one shard.

        Rows hold no cycles, and looking for them would take a third of the time.
        """
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return write_shard(folder, task.number, lambda path: asdict(self._write(task, path)))
        finally:
            if was_enabled:
                gc.enable()

    def _write(self, task: Task, path: Path) -> Counts:
        import pyarrow

        counts = Counts()
        rows = task.stretch.rows()
        first, columns, stream = task.first_row, None, None
        # the columns of a file are known when its batches are; those with weights are few
        with pyarrow.OSFile(str(path), "wb") as file:
            batches = []
            while together := list(islice(rows, self.batch_size)):
                batch = self.encode(together, first, counts)
                first += len(together)
                batches.append(batch)
            columns = schema(has_weights=any("weights" in one.schema.names for one in batches))
            with pyarrow.ipc.new_stream(file, columns) as stream:
                for batch in batches:
                    stream.write_batch(_with_columns(batch, columns))
        return counts

    def encode(
        self, rows: Sequence[RowOrProblem], first: int, counts: Counts
    ) -> pyarrow.RecordBatch:
        """The examples of some rows, the first of which has the number `first`."""
        self.reading.remarks.clear()
        conversations, problems = read_rows(rows, self.reading)
        counts.remarks = dict(Counter(counts.remarks) + self.reading.remarks)
        counts.num_read += len(rows)
        for problem in problems:
            counts.skip(problem)
        weighing = [(at, one) for at, one in conversations if one.weight != 0]
        if len(weighing) < len(conversations):
            counts.leave_out(UNLEARNED, len(conversations) - len(weighing))
        if self.purpose == "learn" and not self.reading.needs_answer:
            answered = [(at, one) for at, one in weighing if one.messages[-1].content]
            if len(answered) < len(weighing):
                asked = len(weighing) - len(answered)
                counts.remarks[ONLY_ASKED] = counts.remarks.get(ONLY_ASKED, 0) + asked
            weighing = answered
        template = self.encoder.template
        if isinstance(template, Template):
            counts.kinds = dict(
                Counter(counts.kinds) + Counter(kind_of(one, template) for _, one in weighing)
            )
        encode = self.encoder.learn if self.purpose == "learn" else self.encoder.ask
        kept = _Kept(self.purpose)
        outcomes = encode([one for _, one in weighing])
        for (at, conversation), outcome in zip(weighing, outcomes, strict=True):
            kept.take(first + at, conversation, outcome, counts)
        return kept.as_batch(counts)


@dataclass(frozen=True)
class Task:
    """A stretch that becomes a shard.

    Attributes:
        number: of the shard.
        first_row: the number of its first row among those of the data set.
        stretch: the rows.
    """

    number: int
    first_row: int
    stretch: Stretch


@dataclass
class _Kept:
    """Examples on their way into a table."""

    purpose: Purpose
    examples: list[Example] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def take(self, row: int, conversation: Conversation, outcome: Outcome, counts: Counts) -> None:
        """Takes what became of a row."""
        if isinstance(outcome, RowProblem):
            counts.skip(outcome)
            return
        if isinstance(outcome, LeftOut):
            counts.leave_out(outcome.reason)
            counts.longest = max(counts.longest, outcome.num_tokens)
            return
        origin = str(conversation.origin or "")
        num_cut = num_tokens = 0
        for example in outcome:
            self.examples.append(example)
            self.origins.append(origin)
            self.rows.append(row)
            num_cut += example.num_cut
            num_tokens += len(example.input_ids)
            if self.purpose == "answer":
                num_tokens += len(example.labels)
        if num_cut:
            counts.num_rows_cut += 1
            counts.num_tokens_cut += num_cut
        if len(outcome) > 1:
            counts.num_rows_split += 1
            counts.num_parts += len(outcome)
        counts.longest = max(counts.longest, num_tokens + num_cut)

    def as_batch(self, counts: Counts) -> pyarrow.RecordBatch:
        """A record batch of `schema`, its tokens counted."""
        import numpy
        import pyarrow

        ids = [example.input_ids for example in self.examples]
        labels = [example.labels for example in self.examples]
        num_tokens = numpy.fromiter(map(len, ids), numpy.int32, len(ids))
        if self.purpose == "learn":
            num_learned = _count_learned(b"".join(labels), num_tokens)
        else:
            num_learned = numpy.fromiter(map(len, labels), numpy.int32, len(labels))
        counts.num_kept += len(ids)
        counts.num_tokens += int(num_tokens.sum())
        counts.num_learned += int(num_learned.sum())
        columns = [
            lists_of(ids, pyarrow.int32()),
            lists_of(labels, pyarrow.int32()),
            pyarrow.array(num_tokens),
            pyarrow.array(num_learned),
            pyarrow.array(self.origins, pyarrow.string()),
            pyarrow.array(self.rows, pyarrow.int64()),
        ]
        has_weights = any(example.weights is not None for example in self.examples)
        if has_weights:
            weights = [
                array("f", [1]) * len(example.input_ids)
                if example.weights is None
                else example.weights
                for example in self.examples
            ]
            columns.append(lists_of(weights, pyarrow.float32()))
        return pyarrow.RecordBatch.from_arrays(columns, schema=schema(has_weights=has_weights))


def _count_learned(labels: bytes, lengths: Any) -> Any:
    """Predicted positions of each example: learned, and not its first."""
    import numpy

    if not len(lengths):
        return numpy.zeros(0, numpy.int32)
    starts = numpy.concatenate([[0], numpy.cumsum(lengths[:-1])])
    is_learned = (numpy.frombuffer(labels, numpy.int32) != IGNORE_INDEX).astype(numpy.int32)
    is_learned[starts] = 0
    return numpy.add.reduceat(is_learned, starts, dtype=numpy.int32)


def lists_of(values: Sequence[Any], kind: Any) -> Any:
    """An Arrow array of lists, copied once, of arrays of that kind."""
    import numpy
    import pyarrow

    ends = numpy.cumsum([0, *map(len, values)], dtype=numpy.int64)
    content = pyarrow.Array.from_buffers(
        kind, int(ends[-1]), [None, pyarrow.py_buffer(b"".join(values))]
    )
    offsets = pyarrow.array(ends.astype(numpy.int32))
    return pyarrow.ListArray.from_arrays(offsets, content)


def _with_columns(batch: pyarrow.RecordBatch, columns: pyarrow.Schema) -> pyarrow.RecordBatch:
    """The batch with `weights` of one, where others of the shard have some."""
    if batch.schema.equals(columns):
        return batch
    ones = [array("f", [1]) * length for length in batch.column("num_tokens").to_pylist()]
    arrays = [*batch.columns, lists_of(ones, columns.field("weights").type.value_type)]
    return type(batch).from_arrays(arrays, schema=columns)


def read_rows(
    rows: Sequence[RowOrProblem], reading: Reading
) -> tuple[list[tuple[int, Conversation]], list[RowProblem]]:
    """Conversations with the number of their row, and the rows that are none."""
    read: Format = FORMATS.get(reading.description.formatting or "alpaca")

    def read_row(values: Mapping[str, Any], origin: Origin) -> Conversation:
        refuse_media(values, reading.description)
        return read(values, reading, origin)

    return read_each(rows, read_row)


def read_each(
    rows: Sequence[RowOrProblem], read: Callable[[Mapping[str, Any], Origin], T]
) -> tuple[list[tuple[int, T]], list[RowProblem]]:
    """What `read` makes of each row, with the row's number, and the rows that are wrong."""
    records: list[tuple[int, T]] = []
    problems: list[RowProblem] = []
    for number, row in enumerate(rows):
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        try:
            if not isinstance(row.values, Mapping):
                raise RowError("", "no object", 'Each row is an object: {"column": value, ...}.')
            records.append((number, read(row.values, row.origin)))
        except RowError as error:
            problems.append(RowProblem.of(row.origin, error, row.values))
    return records, problems


def make_shards(work: Makes, tasks: Iterable[Task], store: Store, num_workers: int) -> None:
    """Makes the shards that `store` does not have.

    Args:
        work: how.
        tasks: all stretches of the data set; they are asked for as workers become free.
        store: where to.
        num_workers: processes; the result does not depend on it.

    Raises:
        DataError: if a worker was killed.
    """
    missing = (task for task in tasks if task.number not in store.shards)
    if num_workers <= 1:
        for task in missing:
            store.add(work.make(task, store.folder))
        return
    first = list(islice(missing, 2))
    if len(first) < 2:
        make_shards(work, first, store, 1)
        return
    from concurrent.futures.process import BrokenProcessPool

    try:
        for shard in _share(work, _chain(first, missing), store.folder, num_workers):
            store.add(shard)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that encoded data was killed, most often because memory ran out. Start "
            f"again with fewer preprocessing_num_workers than {num_workers}; the "
            f"{len(store.shards):,} shards that are done are kept."
        ) from error


def _chain(first: Iterable[Task], rest: Iterable[Task]) -> Iterator[Task]:
    yield from first
    yield from rest


def _share(work: Makes, tasks: Iterator[Task], folder: Path, num_workers: int) -> Iterator[Shard]:
    """The shards as they are done, a few stretches ahead of the workers."""
    from concurrent.futures import FIRST_COMPLETED, Future, wait

    pool = start_pool(num_workers, _keep, work)
    waiting: set[Future[Shard]] = set()
    try:
        for task in tasks:
            if len(waiting) >= NUM_WAITING * num_workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for one in done:
                    yield one.result()
            waiting.add(pool.submit(_make, task, folder))
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in done:
                yield one.result()
    finally:
        pool.shutdown(cancel_futures=True)


_work: Makes | None = None


def _keep(work: Makes) -> None:
    global _work
    _work = work


def _make(task: Task, folder: Path) -> Shard:
    assert _work is not None
    return _work.make(task, folder)
