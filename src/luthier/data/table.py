"""stretches of rows -> shards of encoded examples, by one process or several."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from luthier.data.cache import Shard, Store, write_shard
from luthier.data.check import RowError, RowProblem
from luthier.data.encode import UNLEARNED, Encoder, LeftOut, Outcome
from luthier.data.formats.fields import refuse_media
from luthier.data.formats.registry import FORMATS, Format, Reading
from luthier.data.reader import Chunk, RawRow, RowOrProblem, parse
from luthier.data.report import Counts
from luthier.data.workers import start_pool
from luthier.errors import DataError
from luthier.example import Example, as_batch, schema
from luthier.records import Conversation, Origin
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
        rows = task.rows()
        first, batches = task.first_row, []
        while together := list(islice(rows, self.batch_size)):
            batches.append(
                pyarrow.Table.from_batches([self.encode(parse(together), first, counts)])
            )
            first += len(together)
        # the columns of a file are known when its batches are; numbers that some lack are null
        table = pyarrow.concat_tables(
            batches or [schema().empty_table()], promote_options="default"
        )
        with (
            pyarrow.OSFile(str(path), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
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
        kept: list[Example] = []
        outcomes = encode([one for _, one in weighing])
        for (at, conversation), outcome in zip(weighing, outcomes, strict=True):
            origin = str(conversation.origin or "")
            found = self._count(outcome, counts)
            kept += [replace(each, origin=origin, row=first + at) for each in found]
        return as_batch(kept)

    def _count(self, outcome: Outcome, counts: Counts) -> list[Example]:
        """What a row gives, counted."""
        if isinstance(outcome, RowProblem):
            counts.skip(outcome)
            return []
        if isinstance(outcome, LeftOut):
            counts.leave_out(outcome.reason)
            counts.longest = max(counts.longest, outcome.num_tokens)
            return []
        num_cut = sum(each.num_cut for each in outcome)
        num_tokens = sum(len(each.input_ids) for each in outcome)
        num_learned = sum(each.num_units for each in outcome)
        counts.num_kept += len(outcome)
        counts.num_tokens += num_tokens
        counts.num_learned += num_learned
        if num_cut:
            counts.num_rows_cut += 1
            counts.num_tokens_cut += num_cut
        if len(outcome) > 1:
            counts.num_rows_split += 1
            counts.num_parts += len(outcome)
        num_answered = num_learned if self.purpose == "answer" else 0
        counts.longest = max(counts.longest, num_tokens + num_answered + num_cut)
        return outcome


@dataclass(frozen=True)
class Task:
    """A chunk that becomes a shard.

    Attributes:
        number: of the shard.
        first_row: the number of its first row among those of the data set.
        chunk: the rows.
        picked: those that are used, counted from 0; None for all.
    """

    number: int
    first_row: int
    chunk: Chunk
    picked: Container[int] | None = None

    def rows(self) -> Iterator[RawRow]:
        """The rows that are used."""
        if self.picked is None:
            return self.chunk.rows()
        picked = self.picked
        return (row for at, row in enumerate(self.chunk.rows()) if at in picked)


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
