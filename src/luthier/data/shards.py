"""chunks of rows -> shards of encoded examples, by one process or several."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from luthier.data.cache import Shard, Store, write_shard
from luthier.data.reader import Chunk, RawRow, parse
from luthier.data.report import Counts
from luthier.data.road import Encoding
from luthier.data.workers import start_pool
from luthier.errors import DataError
from luthier.example import schema

NUM_WAITING = 2
"""Chunks that are read ahead for each worker."""

MOST_BYTES = 8_000_000
"""Rows that are encoded together take no more than that, but for a single one."""


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


def make_shard(encoding: Encoding, task: Task, folder: Path) -> Shard:
    """Encodes a chunk and publishes its shard."""
    import pyarrow

    def write(path: Path) -> dict[str, Any]:
        counts, first, batches = Counts(), task.first_row, []
        for together in _batches(task.rows(), encoding.road.data.preprocessing_batch_size):
            batch = encoding.encode(parse(together), first, counts)
            batches.append(pyarrow.Table.from_batches([batch]))
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
        return asdict(counts)

    return write_shard(folder, task.number, write)


def _batches(rows: Iterator[RawRow], most: int) -> Iterator[list[RawRow]]:
    together: list[RawRow] = []
    room = MOST_BYTES
    for row in rows:
        if together and (row.size > room or len(together) == most):
            yield together
            together, room = [], MOST_BYTES
        together.append(row)
        room -= row.size
    if together:
        yield together


def make_shards(encoding: Encoding, tasks: Iterable[Task], store: Store, num_workers: int) -> None:
    """Makes the shards that `store` does not have.

    Args:
        encoding: how.
        tasks: all chunks of the data set; they are asked for as workers become free.
        store: where to.
        num_workers: processes; the result does not depend on it.

    Raises:
        DataError: if a worker was killed.
    """
    from concurrent.futures import FIRST_COMPLETED, Future, wait
    from concurrent.futures.process import BrokenProcessPool

    missing = (task for task in tasks if task.number not in store.shards)
    first = list(islice(missing, 2))
    if num_workers <= 1 or len(first) < 2:
        for task in chain(first, missing):
            store.add(make_shard(encoding, task, store.folder))
        return
    pool = start_pool(num_workers, _keep, encoding)
    waiting: set[Future[Shard]] = set()
    try:
        for task in chain(first, missing):
            if len(waiting) >= NUM_WAITING * num_workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for one in done:
                    store.add(one.result())
            waiting.add(pool.submit(_make, task, store.folder))
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in done:
                store.add(one.result())
    except BrokenProcessPool as error:
        raise DataError(
            "a process that encoded data was killed, most often because memory ran out. Start "
            f"again with fewer preprocessing_num_workers than {num_workers}; the "
            f"{len(store.shards):,} shards that are done are kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_encoding: Encoding | None = None


def _keep(encoding: Encoding) -> None:
    global _encoding
    _encoding = encoding


def _make(task: Task, folder: Path) -> Shard:
    assert _encoding is not None
    return make_shard(_encoding, task, folder)
