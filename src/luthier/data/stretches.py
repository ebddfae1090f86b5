"""data files -> stretches of rows, each small enough for memory and for another process."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from luthier.data.check import RowProblem
from luthier.data.json_rows import holds_lines, read_lines, read_list
from luthier.data.rows import Row, RowOrProblem, without_nulls
from luthier.errors import DataError
from luthier.records import Origin

if TYPE_CHECKING:
    import pyarrow

NUM_TOGETHER = 4096
"""Rows of a stretch, where files are read row by row."""

LEAST_BYTES, MOST_BYTES, STRETCHES_OF_A_FILE = 4 << 20, 32 << 20, 512
"""A file of lines is cut into at most so many stretches of at least and at most so many bytes."""

ReadLines: TypeAlias = Callable[[str, Iterable[bytes], int], Iterator[RowOrProblem]]
"""Lines of the named file from the given number on -> rows; blank lines are none."""


class Stretch(Protocol):
    """Rows that follow each other in a file."""

    def rows(self) -> Iterator[RowOrProblem]:
        """They, in order."""

    def count(self) -> int:
        """How many they are."""

    def pick(self, numbers: Container[int]) -> Stretch:
        """Those of these numbers, counted from 0."""


@dataclass(frozen=True)
class LineStretch:
    """Whole lines of a file, read when they are asked for.

    Attributes:
        file: where they stand.
        name: how messages call it.
        start: the byte where the first begins.
        end: the byte behind the last.
        line: the number of the first.
        read: what makes rows of them.
        picked: the rows that are used; None for all.
    """

    file: Path
    name: str
    start: int
    end: int
    line: int
    read: ReadLines
    picked: Container[int] | None = None

    def rows(self) -> Iterator[RowOrProblem]:
        """A row for each line that is not blank."""
        return self.read(self.name, self._lines(), self.line)

    def count(self) -> int:
        """Lines that are not blank."""
        return sum(1 for line in self._lines() if not _is_blank(line))

    def pick(self, numbers: Container[int]) -> LineStretch:
        """The same with the other lines passed over."""
        return replace(self, picked=numbers)

    def _lines(self) -> Iterator[bytes]:
        position, number = self.start, 0
        with self.file.open("rb") as stream:
            stream.seek(position)
            while position < self.end:
                line = stream.readline()
                if not line:
                    return
                if not position:
                    line, position = line.removeprefix(codecs.BOM_UTF8), position + len(line)
                else:
                    position += len(line)
                if self.picked is not None and not _is_blank(line):
                    number += 1
                    if number - 1 not in self.picked:
                        yield b""
                        continue
                yield line


@dataclass(frozen=True)
class RowStretch:
    """Rows that were read already."""

    content: tuple[RowOrProblem, ...]

    def rows(self) -> Iterator[RowOrProblem]:
        """They."""
        return iter(self.content)

    def count(self) -> int:
        """How many they are."""
        return len(self.content)

    def pick(self, numbers: Container[int]) -> RowStretch:
        """Those of these numbers."""
        return RowStretch(tuple(row for at, row in enumerate(self.content) if at in numbers))


@dataclass(frozen=True)
class TableStretch:
    """Rows of a columnar file as an Arrow batch.

    Attributes:
        batch: the rows.
        name: how messages call the file.
        first: the number of the first row, from 1.
        picked: the rows that are used; None for all.
    """

    batch: pyarrow.RecordBatch
    name: str
    first: int
    picked: Container[int] | None = None

    def rows(self) -> Iterator[RowOrProblem]:
        """Each row as an object."""
        for at in range(0, self.batch.num_rows, 1000):
            for number, values in enumerate(self.batch.slice(at, 1000).to_pylist(), at):
                if self.picked is None or number in self.picked:
                    yield Row(without_nulls(values), Origin(self.name, self.first + number))

    def count(self) -> int:
        """Rows of the batch."""
        return int(self.batch.num_rows)

    def pick(self, numbers: Container[int]) -> TableStretch:
        """The same with the other rows passed over."""
        return replace(self, picked=numbers)


def _is_blank(line: bytes) -> bool:
    return not line or line.isspace()


def cut_file(file: Path, name: str) -> Iterator[Stretch]:
    """The stretches of a data file of any kind.

    JSON lines and texts are cut without being read; other kinds are read as they are asked for. A
    list in one JSON text is read whole.

    Raises:
        DataError: if the file is broken in a way that hides its rows.
    """
    return _KINDS[file.suffix.lower()](file, name)


def _cut_lines(file: Path, name: str, read: ReadLines) -> Iterator[Stretch]:
    size = file.stat().st_size
    length = min(max(size // STRETCHES_OF_A_FILE, LEAST_BYTES), MOST_BYTES)
    start, line = 0, 1
    with file.open("rb") as stream:
        while start < size:
            stream.seek(start)
            block = stream.read(length)
            lines = block.count(b"\n")
            if not block.endswith(b"\n"):
                rest = stream.readline()
                block_end = start + len(block) + len(rest)
                lines += rest.endswith(b"\n")
            else:
                block_end = start + len(block)
            yield LineStretch(file, name, start, block_end, line, read)
            start, line = block_end, line + lines


def _cut_json(file: Path, name: str) -> Iterator[Stretch]:
    if holds_lines(file):
        yield from _cut_lines(file, name, read_lines)
    else:
        yield from gather(read_list(file, name))


def _cut_text(file: Path, name: str) -> Iterator[Stretch]:
    yield from _cut_lines(file, name, read_texts)


def read_texts(name: str, lines: Iterable[bytes], first: int) -> Iterator[RowOrProblem]:
    """Each line that is not blank as the column `text`."""
    for number, line in enumerate(lines, first):
        if not _is_blank(line):
            text = line.rstrip(b"\r\n").decode("utf-8", errors="surrogateescape")
            yield Row({"text": text}, Origin(name, number))


def gather(rows: Iterable[RowOrProblem]) -> Iterator[RowStretch]:
    """Rows in stretches of `NUM_TOGETHER`."""
    waiting = iter(rows)
    while together := tuple(islice(waiting, NUM_TOGETHER)):
        yield RowStretch(together)


def _cut_csv(file: Path, name: str) -> Iterator[Stretch]:
    yield from gather(_read_csv(file, name))


def _read_csv(file: Path, name: str) -> Iterator[RowOrProblem]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        yield from CsvRows(name, stream)


class CsvRows(Iterator[RowOrProblem]):
    """Rows under a header; every value is text, empty cells included.

    Args:
        name: how messages call the file.
        lines: with their line ends; no more are drawn than the rows that were given have.
        header: the columns; by default the first row.
        line: the number of the first line.

    Attributes:
        header: the columns; None as long as they are not known.
        line: the number of the line on which the next row starts.
    """

    def __init__(
        self, name: str, lines: Iterable[str], header: list[str] | None = None, line: int = 1
    ) -> None:
        csv.field_size_limit(1 << 30)
        self.name, self.header, self.line = name, header, line
        self._before, self._reader = line, csv.reader(lines)

    def __next__(self) -> RowOrProblem:
        while True:
            origin = Origin(self.name, self.line)
            try:
                cells = next(self._reader)
            except csv.Error as error:
                return RowProblem(str(origin), "", "not CSV", "Mend the line.", f": {error}")
            finally:
                self.line = self._before + self._reader.line_num
            if self.header is None:
                self.header = cells
            elif len(cells) == len(self.header):
                return Row(dict(zip(self.header, cells, strict=True)), origin)
            elif cells:
                return RowProblem(
                    str(origin),
                    "",
                    "another number of cells than the header",
                    'Put texts with commas or line breaks into quotes ("...").',
                    f" ({len(cells)}, not {len(self.header)})",
                )


def _cut_parquet(file: Path, name: str) -> Iterator[Stretch]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file, memory_map=True, pre_buffer=False) as opened:
            yield from cut_batches(opened.iter_batches(batch_size=NUM_TOGETHER), name)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(name, "parquet", error) from error


def _cut_arrow(file: Path, name: str) -> Iterator[Stretch]:
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(file)) as stream:
            try:
                opened = pyarrow.ipc.open_file(stream)
                batches = (opened.get_batch(at) for at in range(opened.num_record_batches))
            except pyarrow.ArrowInvalid:
                stream.seek(0)
                batches = iter(pyarrow.ipc.open_stream(stream))
            yield from cut_batches(batches, name)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(name, "arrow", error) from error


def cut_batches(batches: Iterable[Any], name: str) -> Iterator[TableStretch]:
    """Arrow batches in slices of at most `NUM_TOGETHER` rows."""
    first = 1
    for batch in batches:
        for start in range(0, batch.num_rows, NUM_TOGETHER):
            part = batch.slice(start, NUM_TOGETHER)
            yield TableStretch(part, name, first)
            first += part.num_rows


def _unreadable(name: str, kind: str, error: Exception) -> DataError:
    return DataError(f"{name}: it cannot be read as {kind}: {error}. Is the file whole?")


_KINDS: dict[str, Callable[[Path, str], Iterator[Stretch]]] = {
    ".json": _cut_json,
    ".jsonl": _cut_json,
    ".csv": _cut_csv,
    ".txt": _cut_text,
    ".parquet": _cut_parquet,
    ".arrow": _cut_arrow,
}
