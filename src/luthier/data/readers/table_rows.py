"""Parquet and Arrow: rows of a table, a batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.data.reader import (
    NUM_TOGETHER,
    READERS,
    ArrowRow,
    DataFile,
    Position,
    RawRows,
    Reader,
)
from luthier.errors import DataError
from luthier.records import Origin


@READERS.register(".parquet")
class ParquetReader(Reader):
    """Row groups before a position are passed over without being read."""

    def rows(self, file: DataFile, position: Position = None) -> RawRows:
        import pyarrow.parquet

        skipped, number = position[0] if position else 0, 0
        with (
            _opened(file, "parquet") as source,
            pyarrow.parquet.ParquetFile(source, pre_buffer=False) as table,
        ):
            for group in range(table.num_row_groups):
                num_rows = table.metadata.row_group(group).num_rows
                if number + num_rows > skipped:
                    batches = table.iter_batches(batch_size=NUM_TOGETHER, row_groups=[group])
                    yield from read_cells(batches, file.name, number, skipped)
                number += num_rows


@READERS.register(".arrow")
class ArrowReader(Reader):
    """The file format and the stream format."""

    def rows(self, file: DataFile, position: Position = None) -> RawRows:
        import pyarrow.ipc

        with _opened(file, "arrow") as source:
            batches: Iterable[Any]
            try:
                table = pyarrow.ipc.open_file(source)
                batches = (table.get_batch(at) for at in range(table.num_record_batches))
            except pyarrow.ArrowInvalid:
                source.seek(0)
                batches = pyarrow.ipc.open_stream(source)
            yield from read_cells(batches, file.name, 0, position[0] if position else 0)


def read_cells(batches: Iterable[Any], name: str, number: int, skipped: int) -> RawRows:
    """The rows of Arrow batches, numbered on from `number`, without those before `skipped`."""
    for batch in batches:
        size = batch.nbytes // max(batch.num_rows, 1)
        for at in range(max(skipped - number, 0), batch.num_rows):
            behind = number + at + 1
            yield ArrowRow(batch, at, Origin(name, behind), size), [behind]
        number += batch.num_rows


@contextmanager
def _opened(file: DataFile, kind: str) -> Iterator[Any]:
    import pyarrow

    try:
        if isinstance(file.place, Path):
            with pyarrow.memory_map(str(file.place)) as source:
                yield source
        else:
            with pyarrow.PythonFile(file.open(), mode="r") as source:
                yield source
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name}: it cannot be read as {kind}: {error}. Is the file whole?"
        ) from error
