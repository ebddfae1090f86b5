"""a file, here or in the cloud -> its raw rows from any position on, and chunks of them.

A position is what JSON can hold and what it takes to go on: byte and line of a file of lines, of a
list or of CSV, the number of rows before it in a columnar file.
"""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

from luthier.data.check import RowProblem
from luthier.records import Origin
from luthier.registry import Registry

if TYPE_CHECKING:
    import pyarrow

NUM_TOGETHER = 4096
"""Rows of a chunk, where files are read row by row."""

LEAST_BYTES, MOST_BYTES, CHUNKS_OF_A_FILE = 4 << 20, 32 << 20, 512
"""A file of lines is cut into at most so many chunks of at least and at most so many bytes."""

STAMPED_BYTES = 1 << 20
"""Bytes at the start of a file that tell it from another one of the same size."""

Position: TypeAlias = Any
"""Where reading goes on, as JSON; None for the start."""

SampleBy: TypeAlias = Literal["line", "paragraph", "document"]
"""What of a text file is a row, in the words of the text loader of `datasets`."""


def file_name(path: str) -> str:
    """The last part of a path or a URL, without what is asked or signed behind it."""
    return Path(path.partition("?")[0] if "://" in path else path).name


@dataclass(frozen=True, slots=True)
class Row:
    """What stands in one row of a file, of whatever type."""

    values: Any
    origin: Origin


RowOrProblem: TypeAlias = Row | RowProblem


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file that is not parsed yet."""

    text: bytes
    origin: Origin
    parse: Callable[[bytes, Origin], RowOrProblem]

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.text)

    def row(self) -> RowOrProblem:
        """What it says."""
        return self.parse(self.text, self.origin)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A row that was parsed to find its end."""

    content: RowOrProblem
    size: int

    def row(self) -> RowOrProblem:
        """What it says."""
        return self.content


@dataclass(frozen=True, slots=True)
class ArrowRow:
    """A row of an Arrow batch; to another process it goes without the batch."""

    batch: pyarrow.RecordBatch
    at: int
    origin: Origin
    size: int

    def row(self) -> Row:
        """What it says."""
        return Row(without_nulls(self.batch.slice(self.at, 1).to_pylist()[0]), self.origin)

    def __reduce__(self) -> tuple[type[Parsed], tuple[Row, int]]:
        return Parsed, (self.row(), self.size)


RawRow: TypeAlias = Line | Parsed | ArrowRow
"""A row on its way: where it stands and about how large it is are known, what it says need not."""


def parse(raw_rows: Sequence[RawRow]) -> list[RowOrProblem]:
    """What rows say; those that follow each other in an Arrow batch are converted together."""
    found: list[RowOrProblem] = []
    at = 0
    while at < len(raw_rows):
        first, end = raw_rows[at], at + 1
        if not isinstance(first, ArrowRow):
            found.append(first.row())
            at = end
            continue
        rows = [first]
        while end < len(raw_rows):
            row = raw_rows[end]
            if not isinstance(row, ArrowRow) or row.batch is not first.batch:
                break
            if row.at != first.at + end - at:
                break
            rows.append(row)
            end += 1
        values = first.batch.slice(first.at, len(rows)).to_pylist()
        found += [Row(without_nulls(v), each.origin) for v, each in zip(values, rows, strict=True)]
        at = end
    return found


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an Arrow table as its objects were before.

    In a table all objects of a column have the same keys: those that only other rows' objects
    have are null, on every level but the first.
    """

    def known(value: Any) -> Any:
        if isinstance(value, list):
            return [known(one) for one in value]
        if isinstance(value, dict):
            return {key: known(one) for key, one in value.items() if one is not None}
        return value

    return {key: known(value) for key, value in values.items()}


RawRows: TypeAlias = Iterator[tuple[RawRow, Position]]
"""Rows, each with the position behind it."""


Chunk: TypeAlias = Iterable[RawRow]
"""Rows that follow each other in a file, to be encoded by one process; it is gone over again."""


class Reader:
    """Reads one kind of file. A kind is a subclass in `readers/`, registered by its suffixes."""

    def rows(self, file: DataFile, position: Position = None) -> RawRows:
        """The rows behind a position, each with the position behind it.

        Raises:
            DataError: if the file is broken in a way that hides its rows.
        """
        raise NotImplementedError

    def chunks(self, file: DataFile) -> Iterator[Chunk]:
        """The same rows in chunks, read as they are asked for; a kind of lines can cut cheaper."""
        return gather(row for row, _ in self.rows(file))


READERS: Registry[type[Reader]] = Registry("kind of file", "luthier.data.readers")
"""Suffix -> its reader."""


@dataclass(frozen=True)
class DataFile:
    """A file that rows are read from."""

    place: Path | str  # a path here, or a URL that fsspec knows
    name: str  # how messages call it
    token: str | None = None  # a login of the hub, for `hf://`
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

        options = {"token": self.token} if self.token and self.place.startswith("hf://") else {}
        return fsspec.open(self.place, "rb", **options).open()  # type: ignore[no-any-return]

    def rows(self, position: Position = None) -> RawRows:
        """As `Reader.rows`."""
        return READERS.get(self.suffix)().rows(self, position)

    def chunks(self) -> Iterator[Chunk]:
        """As `Reader.chunks`."""
        return READERS.get(self.suffix)().chunks(self)

    def stamp(self) -> str:
        """Its size and a hash of its first bytes: another one is not read from a position."""
        with self.open() as stream:
            start = stream.read(STAMPED_BYTES)
            size = stream.seek(0, 2)
        return f"{size}-{hashlib.sha256(start).hexdigest()[:16]}"


@dataclass(frozen=True)
class ByteRange:
    """Whole lines of a file, from a byte and a line on, read when they are asked for."""

    file: DataFile
    start: int
    end: int
    line: int

    def __iter__(self) -> Iterator[RawRow]:
        for row, (behind, _) in self.file.rows([self.start, self.line]):
            if behind - row.size >= self.end:
                return
            yield row


def gather(rows: Iterator[RawRow]) -> Iterator[Chunk]:
    """Rows in chunks of `NUM_TOGETHER`."""
    while together := tuple(islice(rows, NUM_TOGETHER)):
        yield together


def read_lines(
    file: DataFile, position: Position, parse: Callable[[bytes, Origin], RowOrProblem]
) -> RawRows:
    """A row for each line that is not blank; `parse` makes it of the line."""
    byte, number = position or (0, 1)
    with file.open() as stream:
        stream.seek(byte)
        for line in stream:
            byte += len(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line and not line.isspace():
                yield Line(line, Origin(file.name, number), parse), [byte, number + 1]
            number += 1


def cut_lines(file: DataFile) -> Iterator[ByteRange]:
    """The chunks of a file of lines, found without reading rows."""
    with file.open() as stream:
        size = stream.seek(0, 2)
        length = min(max(size // CHUNKS_OF_A_FILE, LEAST_BYTES), MOST_BYTES)
        start, line = 0, 1
        while start < size:
            stream.seek(start)
            block = stream.read(length)
            end, lines = start + len(block), block.count(b"\n")
            if not block.endswith(b"\n"):
                rest = stream.readline()
                end, lines = end + len(rest), lines + rest.endswith(b"\n")
            yield ByteRange(file, start, end, line)
            start, line = end, line + lines


class TextLines(Iterator[str]):
    """Lines as text with their ends, from a byte on; `byte` is behind the last that was given."""

    def __init__(self, stream: IO[bytes], byte: int) -> None:
        stream.seek(byte)
        self._text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="")
        self.byte = byte

    def __next__(self) -> str:
        line = self._text.readline()
        if not line:
            raise StopIteration
        is_first, size = not self.byte, len(line.encode("utf-8", "surrogateescape"))
        self.byte += size
        return line.removeprefix("\ufeff") if is_first else line
