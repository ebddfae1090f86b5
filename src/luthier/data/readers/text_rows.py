"""Text: a row for each line, each paragraph, or the whole file, by `sample_by`."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.data.reader import (
    READERS,
    Chunk,
    DataFile,
    Parsed,
    Position,
    RawRows,
    Reader,
    Row,
    TextLines,
    cut_lines,
    read_lines,
)
from luthier.records import Origin


@READERS.register(".txt")
class TextReader(Reader):
    """The column is `text`. A paragraph ends at a blank line, without its last line's end."""

    def rows(self, file: DataFile, position: Position = None) -> RawRows:
        if file.sample_by == "line":
            yield from read_lines(file, position, parse_line)
            return
        byte, number = position or (0, 1)
        is_whole = file.sample_by == "document"
        with file.open() as stream:
            lines = TextLines(stream, byte)
            together: list[str] = []
            begin = byte
            for line in lines:
                number += 1
                if is_whole or not line.isspace():
                    together.append(line)
                elif together:
                    row = _joined(file, together, number - 1, lines.byte - begin)
                    yield row, [lines.byte, number]
                    together, begin = [], lines.byte
            if any(not line.isspace() for line in together):
                yield _joined(file, together, number, lines.byte - begin), [lines.byte, number]

    def chunks(self, file: DataFile) -> Iterator[Chunk]:
        return cut_lines(file) if file.sample_by == "line" else super().chunks(file)


def parse_line(line: bytes, origin: Origin) -> Row:
    """The text of a line without its end."""
    return Row({"text": line.rstrip(b"\r\n").decode("utf-8", errors="surrogateescape")}, origin)


def _joined(file: DataFile, lines: list[str], number: int, size: int) -> Parsed:
    """Lines, those before line `number`, as one text."""
    text = "".join(lines)
    if file.sample_by == "paragraph":
        text = text.rstrip("\r\n")
    return Parsed(Row({"text": text}, Origin(file.name, number - len(lines))), size)
