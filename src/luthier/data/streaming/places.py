"""a file, here or in the cloud -> its rows from any position on, each with the position behind it.

A position is what JSON can hold and what it takes to go on: byte and line of a file of lines, of a
list or of CSV, the number of rows before it in a columnar file.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from luthier.data.check import SAVE_AS_UTF8
from luthier.data.cloud import protocol_of
from luthier.data.files import file_name
from luthier.data.json_rows import holds_lines, read_lines
from luthier.data.rows import Row, RowOrProblem, without_nulls
from luthier.data.streaming.json_list import read_list_from
from luthier.data.stretches import NUM_TOGETHER, CsvRows, ReadLines, read_texts
from luthier.data.text_files import SampleBy
from luthier.errors import DataError
from luthier.records import Origin

if TYPE_CHECKING:
    import pyarrow

Position: TypeAlias = Any
"""Where reading goes on, as JSON; None for the start."""

STAMPED_BYTES = 1 << 20
"""Bytes at the start of a file that tell it from another one of the same size."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file that is not parsed yet."""

    text: bytes
    name: str
    number: int
    read: ReadLines

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.text)

    def row(self) -> RowOrProblem:
        """What it says."""
        return next(self.read(self.name, (self.text,), self.number))

    def to_send(self) -> Line:
        """What another process is given."""
        return self


@dataclass(frozen=True, slots=True)
class Parsed:
    """A row that was parsed to find its end."""

    content: RowOrProblem
    size: int

    def row(self) -> RowOrProblem:
        """It."""
        return self.content

    def to_send(self) -> Parsed:
        """What another process is given."""
        return self


@dataclass(frozen=True, slots=True)
class Cell:
    """A row of an Arrow batch."""

    batch: pyarrow.RecordBatch
    at: int
    origin: Origin
    size: int

    def row(self) -> Row:
        """It as an object."""
        return Row(without_nulls(self.batch.slice(self.at, 1).to_pylist()[0]), self.origin)

    def to_send(self) -> Parsed:
        """What another process is given: the row, not the batch around it."""
        return Parsed(self.row(), self.size)


Entry: TypeAlias = Line | Parsed | Cell
"""A row on its way: where it stands is known, what it says need not be."""

Read: TypeAlias = Iterator[tuple[Entry, Position]]


@dataclass(frozen=True)
class DataFile:
    """A file that rows are read from.

    Attributes:
        place: a path here, or a URL that fsspec knows.
        name: how messages call it.
        token: a login of the hub, for `hf://`.
        sample_by: what of a text file is a row.
    """

    place: Path | str
    name: str
    token: str | None = None
    sample_by: SampleBy = "line"

    @property
    def suffix(self) -> str:
        """The kind of file."""
        return Path(file_name(str(self.place))).suffix.lower()

    def open(self) -> IO[bytes]:
        """Its bytes."""
        if isinstance(self.place, Path):
            return self.place.open("rb")
        import fsspec

        options = {"token": self.token} if self.token and protocol_of(self.place) == "hf" else {}
        return fsspec.open(self.place, "rb", **options).open()  # type: ignore[no-any-return]

    def rows(self, position: Position = None) -> Read:
        """The rows behind a position, each with the position behind it.

        Raises:
            DataError: if the file is broken in a way that hides its rows.
        """
        return _KINDS[self.suffix](self, position)

    def stamp(self) -> str:
        """Its size and a hash of its first bytes: another one is not read from a position."""
        with self.open() as stream:
            start = stream.read(STAMPED_BYTES)
            size = stream.seek(0, 2)
        return f"{size}-{hashlib.sha256(start).hexdigest()[:16]}"


def _lines(file: DataFile, position: Position, read: ReadLines) -> Read:
    byte, number = position or (0, 1)
    with file.open() as stream:
        stream.seek(byte)
        for line in stream:
            byte += len(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line and not line.isspace():
                yield Line(line, file.name, number, read), [byte, number + 1]
            number += 1


def _json(file: DataFile, position: Position) -> Read:
    if _holds_lines(file):
        yield from _lines(file, position, read_lines)
        return
    with file.open() as stream:
        for row, size, behind in read_list_from(stream, file.name, position):
            yield Parsed(row, size), behind


def _holds_lines(file: DataFile) -> bool:
    if isinstance(file.place, Path):
        return holds_lines(file.place)
    with file.open() as stream:
        start = stream.read(4096)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{file.name}: it is written as UTF-16. {SAVE_AS_UTF8}")
    return start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] != b"["


def _text(file: DataFile, position: Position) -> Read:
    if file.sample_by == "line":
        yield from _lines(file, position, read_texts)
        return
    byte, number = position or (0, 1)
    with file.open() as stream:
        stream.seek(byte)
        together: list[bytes] = []
        for line in stream:
            byte, number = byte + len(line), number + 1
            if file.sample_by == "document" or not line.isspace():
                together.append(line)
            elif together:
                yield _joined(file, together, number - 1 - len(together)), [byte, number]
                together = []
        if any(not line.isspace() for line in together):
            yield _joined(file, together, number - len(together)), [byte, number]


def _joined(file: DataFile, lines: list[bytes], number: int) -> Parsed:
    """Lines as one text, in the words of `text_files`."""
    text = b"".join(lines).removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")
    if file.sample_by == "paragraph":
        text = text.rstrip("\r\n")
    return Parsed(Row({"text": text}, Origin(file.name, number)), sum(map(len, lines)))


class _Counted(Iterator[str]):
    """Lines as text, and the byte behind the last one that was given."""

    def __init__(self, stream: IO[bytes], byte: int) -> None:
        self._stream, self.byte = stream, byte

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        is_first, self.byte = not self.byte, self.byte + len(line)
        if is_first:
            line = line.removeprefix(codecs.BOM_UTF8)
        return line.decode("utf-8", errors="surrogateescape")


def _csv(file: DataFile, position: Position) -> Read:
    with file.open() as stream:
        lines = _Counted(stream, 0)
        rows = CsvRows(file.name, lines)
        if position:
            while rows.header is None:
                next(rows)
            byte, line = position
            stream.seek(byte)
            lines = _Counted(stream, byte)
            rows = CsvRows(file.name, lines, rows.header, line)
        before = lines.byte
        for row in rows:
            yield Parsed(row, lines.byte - before), [lines.byte, rows.line]
            before = lines.byte


def _parquet(file: DataFile, position: Position) -> Read:
    import pyarrow
    import pyarrow.parquet

    skipped = position[0] if position else 0
    try:
        with (
            _opened(file) as source,
            pyarrow.parquet.ParquetFile(source, pre_buffer=False) as table,
        ):
            number = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if number + rows > skipped:
                    batches = table.iter_batches(batch_size=NUM_TOGETHER, row_groups=[group])
                    yield from _cells(batches, file.name, number, skipped)
                number += rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(file, "parquet", error) from error


def _arrow(file: DataFile, position: Position) -> Read:
    import pyarrow
    import pyarrow.ipc

    try:
        with _opened(file) as source:
            try:
                table = pyarrow.ipc.open_file(source)
                batches = (table.get_batch(at) for at in range(table.num_record_batches))
            except pyarrow.ArrowInvalid:
                source.seek(0)
                batches = iter(pyarrow.ipc.open_stream(source))
            yield from _cells(batches, file.name, 0, position[0] if position else 0)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(file, "arrow", error) from error


def _opened(file: DataFile) -> Any:
    import pyarrow

    if isinstance(file.place, Path):
        return pyarrow.memory_map(str(file.place))
    return pyarrow.PythonFile(file.open(), mode="r")


def _cells(batches: Iterator[Any], name: str, number: int, skipped: int) -> Read:
    """Rows of Arrow batches, without those before number `skipped` of the file."""
    for batch in batches:
        size = batch.nbytes // max(batch.num_rows, 1)
        for at in range(max(skipped - number, 0), batch.num_rows):
            behind = number + at + 1
            yield Cell(batch, at, Origin(name, behind), size), [behind]
        number += batch.num_rows


def _unreadable(file: DataFile, kind: str, error: Exception) -> DataError:
    return DataError(f"{file.name}: it cannot be read as {kind}: {error}. Is the file whole?")


_KINDS: dict[str, Callable[[DataFile, Position], Read]] = {
    ".json": _json,
    ".jsonl": _json,
    ".csv": _csv,
    ".txt": _text,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
