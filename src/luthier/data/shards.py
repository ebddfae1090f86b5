"""chunks of rows -> shards of encoded examples, by one process or several."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from luthier.data.cache import Shard, Store, write_shard
from luthier.data.reader import Chunk, RawRow, parse
from luthier.data.report import Counts
from luthier.data.road import Encoding
from luthier.data.workers import Workers
from luthier.example import schema

NUM_WAITING = 2
"""Chunks that are read ahead for each worker."""

MOST_BYTES = 8_000_000
"""Rows that are encoded together take no more than that, but for a single one."""


@dataclass(frozen=True)
class Task:
    """A chunk that becomes a shard."""

    number: int  # of the shard
    first_row: int  # the number of its first row among those of the data set
    chunk: Chunk
    picked: Container[int] | None = None  # the rows that are used, from 0; None for all

    def rows(self) -> Iterator[RawRow]:
        """The rows that are used."""
        picked = self.picked
        return (row for at, row in enumerate(self.chunk) if picked is None or at in picked)


def make_shard(encoding: Encoding, folder: Path, task: Task) -> Shard:
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
    """Makes the shards of all chunks of a data set that `store` does not have.

    Chunks are asked for as workers become free; the result does not depend on how many there are.

    Raises:
        DataError: if a worker was killed.
    """
    missing = (task for task in tasks if task.number not in store.shards)
    first = list(islice(missing, 2))
    is_shared = num_workers > 1 and len(first) == 2
    make = partial(make_shard, encoding, store.folder)
    workers = Workers(make, num_workers if is_shared else 0)
    fewer = f"preprocessing_num_workers than {num_workers}; the shards that are done are kept"
    try:
        for _, shard in workers.results(chain(first, missing), NUM_WAITING, fewer):
            store.add(shard)
    finally:
        workers.close()
