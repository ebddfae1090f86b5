"""JSON: one row a line, or a list of rows; the first character of a file tells which."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from luthier.data.check import NOT_UTF8, SAVE_AS_UTF8, RowProblem, shorten
from luthier.data.reader import (
    READERS,
    Chunk,
    DataFile,
    Parsed,
    Position,
    RawRows,
    Reader,
    Row,
    RowOrProblem,
    cut_lines,
    read_lines,
)
from luthier.errors import DataError
from luthier.records import Origin

WINDOW_BYTES, MOST_BYTES = 4 << 20, 64 << 20
"""Of a list so much is decoded at a time, and for the sake of one row at most so much."""

LONGEST_WORD = 16
"""No word, number or escape of JSON that fails is longer where it fails."""

_MENDS = {
    "Unterminated string": (
        "a text is not closed",
        'Close it with ", and write \\" for a quote inside.',
    ),
    "Invalid control character": (
        "a raw control character in a text",
        "Write a line break as \\n and a tab as \\t.",
    ),
    "Invalid \\escape": ("a backslash that escapes nothing", "Write a backslash as \\\\."),
    "Invalid \\uXXXX": ("an incomplete \\u escape", "Write four hexadecimal digits behind \\u."),
    "Extra data": (
        "more behind the value",
        "Give each row a line of its own, with nothing behind it.",
    ),
    "Expecting property name": (
        "no key in double quotes",
        'Write keys as "key", and no comma before }.',
    ),
    "Illegal trailing comma": ("a comma too many", "Take away the comma before } or ]."),
    "Expecting ',' delimiter": (
        "no comma between two values",
        'Write a comma between values, and \\" for a quote inside a text.',
    ),
    "Expecting ':' delimiter": ("no colon behind a key", 'Write "key": value.'),
    "Expecting value": (
        "no value",
        'Write texts as "text", and true, false and null in small letters.',
    ),
}
"""How the decoder's message begins -> what is wrong, and what to do."""

_SPACE = re.compile(r"[ \t\n\r]*")
_BETWEEN = "Rows stand between [ and ], a comma between each two."


class _SameKey(ValueError):
    """An object names a key twice."""


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _SameKey(repr(twice[:40]))
    return made


_DECODER, _LENIENT = json.JSONDecoder(object_pairs_hook=_object), json.JSONDecoder()


@READERS.register(".json", ".jsonl")
class JsonReader(Reader):
    """Behind a bad line reading goes on; a list ends at its first break, which is an error.

    Where a list is broken nothing tells its rows from what stands in them.
    """

    def rows(self, file: DataFile, position: Position = None) -> RawRows:
        if holds_lines(file):
            return read_lines(file, position, parse_line)
        return read_list(file, position)

    def chunks(self, file: DataFile) -> Iterator[Chunk]:
        return cut_lines(file) if holds_lines(file) else super().chunks(file)


def holds_lines(file: DataFile) -> bool:
    """Whether a JSON file holds one row a line, not a list; the first character tells.

    Raises:
        DataError: if the whole file is something else: UTF-16, or one object over many lines.
    """
    with file.open() as stream:
        start = stream.read(4096)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{file.name}: it is written as UTF-16. {SAVE_AS_UTF8}")
        start = start.removeprefix(codecs.BOM_UTF8).lstrip()
        if start[:1] == b"{" and file.suffix == ".json" and isinstance(file.place, Path):
            stream.seek(0)
            _refuse_one_object(file, stream)
    return start[:1] != b"["


def _refuse_one_object(file: DataFile, stream: IO[bytes]) -> None:
    """Ends the reading of a file that is one object over many lines, such as {"data": [...]}."""
    first = stream.readline()
    stream.seek(0)
    try:
        json.loads(first.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        try:
            whole = json.loads(stream.read().removeprefix(codecs.BOM_UTF8))
        except (ValueError, RecursionError):
            return
        if isinstance(whole, dict):
            keys = ", ".join(map(repr, list(whole)[:8]))
            raise DataError(
                f"{file.name}: it is one object with the keys {keys}; expected is a list of rows, "
                "or one row a line. Put the rows alone into the file."
            ) from None


def parse_line(line: bytes, origin: Origin) -> RowOrProblem:
    """What one line says."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        shown = line.decode("utf-8", errors="backslashreplace")
        at = len(line[: error.start].decode("utf-8"))
        place = str(origin)
        return RowProblem(place, "", NOT_UTF8, SAVE_AS_UTF8, "", at + 1, shorten(shown, at))
    try:
        return Row(_DECODER.decode(text), origin)
    except (ValueError, RecursionError) as error:
        return _problem(origin, text, error)


def _problem(origin: Origin, text: str, error: Exception, column: int = 0) -> RowProblem:
    """What the decoder says of a row, which begins `column` characters behind its line's start."""
    if isinstance(error, _SameKey):
        reason, fix, found = "a key stands twice", "Keep one of them.", f" ({error})"
        return RowProblem(str(origin), "", reason, fix, found, excerpt=shorten(text))
    if not isinstance(error, json.JSONDecodeError):
        reason, fix = "JSON too large to read", "Shorten the number or the nesting."
        return RowProblem(str(origin), "", reason, fix, f" ({error})", excerpt=shorten(text))
    at = error.pos
    what, fix = next(
        (mend for start, mend in _MENDS.items() if error.msg.startswith(start)),
        (error.msg, "One whole JSON object a line is expected."),
    )
    where = text[max(at - 1, 0) : at + 1]
    if "\0" in where:
        what = "NUL bytes"
        fix = "The file was damaged when it was written: take them away, or write it anew."
    elif "\ufeff" in where:
        what = "a byte-order mark inside the file"
        fix = "Files were joined: take the mark (bytes EF BB BF) away."
    elif not error.msg.startswith("Unterminated") and not text[at:].strip():
        what, fix = "it ends too early", "Was it cut off? Write the row whole."
    found = ""
    line = origin.line + text.count("\n", 0, at)
    line_start = text.rfind("\n", 0, at) + 1
    position = at - line_start + 1
    if line == origin.line:
        position += column
    else:
        found = f" (in the row that starts on line {origin.line})"
    shown = shorten(text[line_start:].partition("\n")[0], at - line_start)
    return RowProblem(f"{origin.file}:{line}", "", f"not JSON: {what}", fix, found, position, shown)


def read_list(
    file: DataFile, position: Position = None, window_bytes: int = WINDOW_BYTES
) -> RawRows:
    """The rows of a list behind a position, a window of the text in memory at a time.

    A position is the byte, line and column behind a row.

    Raises:
        DataError: where the list is broken, or a row takes more than `MOST_BYTES`.
    """
    with file.open() as stream:
        text = _Window(file, stream, position or [0, 1, 0], window_bytes)
        if position is None:
            text.skip("\ufeff")
            text.skip_space()
            text.skip("[")
            text.skip_space()
        is_first = position is None
        while True:
            text.skip_space()
            mark = text.mark()
            if mark == "]":
                text.skip("]")
                text.skip_space()
                if text.mark():
                    raise text.broken("text behind the end of the list")
                return
            if not is_first:
                if mark != ",":
                    what = "no comma behind the row" if mark else "the file ends inside the list"
                    raise text.broken(what)
                text.skip(",")
                text.skip_space()
                if text.mark() in ("]", ","):
                    raise text.broken("a comma without a row behind it")
            is_first = False
            if not text.mark():
                raise text.broken("the file ends inside the list")
            row, size = text.next_row()
            yield Parsed(row, size), text.position()


class _Window:
    """The part of a list that is decoded, from what is not read of it yet on."""

    def __init__(
        self, file: DataFile, stream: IO[bytes], position: Position, window_bytes: int
    ) -> None:
        self.file, self.stream, self.window_bytes = file, stream, window_bytes
        if len(position) != 3:
            raise DataError(
                f"{file.name}: the checkpoint stands in this list as an earlier version read it. "
                "Set ignore_data_skip: true to go on with the first example."
            )
        self.byte, self.line, self.column = position
        stream.seek(self.byte)
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.text, self.at = "", 0
        self.is_last = False

    def position(self) -> Position:
        return [self.byte, self.line, self.column]

    def more(self) -> bool:
        """Reads on; whether there was more."""
        if self.is_last:
            return False
        block = self.stream.read(max(self.window_bytes, len(self.text) - self.at))
        self.is_last = not block
        self.text, self.at = self.text[self.at :] + self._decode(block, final=not block), 0
        return True

    def mark(self) -> str:
        """The next character; empty at the end of the file."""
        while self.at == len(self.text) and self.more():
            pass
        return self.text[self.at : self.at + 1]

    def skip(self, mark: str) -> None:
        """Passes over a character where it stands."""
        if self.mark() == mark:
            self._pass(self.at + 1)

    def skip_space(self) -> None:
        while self.mark():
            found = _SPACE.match(self.text, self.at)
            assert found is not None
            self._pass(found.end())
            if self.at < len(self.text):
                return

    def next_row(self) -> tuple[RowOrProblem, int]:
        """The row that begins here, and its bytes."""
        origin = Origin(self.file.name, self.line)
        while True:
            row: RowOrProblem
            try:
                try:
                    values, end = _DECODER.raw_decode(self.text, self.at)
                    row = Row(values, origin)
                except _SameKey as error:
                    _, end = _LENIENT.raw_decode(self.text, self.at)
                    row = _problem(origin, self.text[self.at : end], error)
            except (ValueError, RecursionError) as error:
                if self._may_be_cut(error) and self.more():
                    continue
                raise self._not_readable(origin, error) from None
            if end == len(self.text) and self.more():  # a number may go on
                continue
            return row, self._pass(end)

    def _may_be_cut(self, error: Exception) -> bool:
        """Whether a row may have no end only because the window has one."""
        if not isinstance(error, json.JSONDecodeError) or len(self.text) - self.at > MOST_BYTES:
            return False
        is_open = error.msg.startswith("Unterminated")
        return is_open or error.pos > len(self.text) - LONGEST_WORD

    def _not_readable(self, origin: Origin, error: Exception) -> DataError:
        text = self.text[self.at :]
        if isinstance(error, json.JSONDecodeError):
            text = text[: error.pos - self.at + 200]
            error = json.JSONDecodeError(error.msg, text, min(error.pos - self.at, len(text)))
        return _stopped(_problem(origin, text, error, self.column))

    def broken(self, what: str) -> DataError:
        """What is wrong between the rows, here."""
        shown = shorten(self.text[self.at : self.at + 200].partition("\n")[0])
        return _stopped(
            RowProblem(
                f"{self.file.name}:{self.line}",
                "",
                f"not JSON: {what}",
                _BETWEEN,
                position=self.column + 1,
                excerpt=shown,
            )
        )

    def _pass(self, end: int) -> int:
        """Goes on to `end`; the bytes in between."""
        passed, self.at = self.text[self.at : end], end
        size = len(passed.encode("utf-8", "surrogateescape"))
        self.byte += size
        num_lines = passed.count("\n")
        self.line += num_lines
        if num_lines:
            self.column = len(passed) - passed.rfind("\n") - 1
        else:
            self.column += len(passed)
        return size


def _stopped(problem: RowProblem) -> DataError:
    return DataError(
        f"{problem}\nA list of rows cannot be read behind its first break. Mend it there, or "
        "write one row a line (.jsonl): then a bad row costs no other."
    )
