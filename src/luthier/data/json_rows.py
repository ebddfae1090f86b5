"""JSON text -> rows, one a line or in a list, the broken ones told apart from the rest."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from luthier.data.check import NOT_UTF8, SAVE_AS_UTF8, RowProblem, shorten
from luthier.data.rows import Row, RowOrProblem
from luthier.errors import DataError
from luthier.records import Origin

_BOM = "\ufeff"
_ENDS_EARLY = ("it ends too early", "Was it cut off? Write the row whole.")
_NUL_BYTES = (
    "NUL bytes",
    "The file was damaged when it was written: take them away, or write it anew.",
)
_BOM_INSIDE = (
    "a byte-order mark inside the file",
    "Files were joined: take the mark (bytes EF BB BF) away.",
)
_LONGEST_WORD = 16
"""No word, number or escape of JSON that fails is longer where it fails."""

_IDLE_COMMA = "a comma without a row behind it"
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
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")?')


class _SameKey(ValueError):
    """An object names a key twice."""


def holds_lines(file: Path) -> bool:
    """Whether a JSON file holds one row a line, not a list; the first character tells.

    Raises:
        DataError: if the whole file is something else: UTF-16, or one object over many lines.
    """
    with file.open("rb") as stream:
        start = stream.read(4096)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{file}: it is written as UTF-16. {SAVE_AS_UTF8}")
        start = start.removeprefix(codecs.BOM_UTF8).lstrip()
        if start[:1] == b"{" and file.suffix.lower() == ".json":
            stream.seek(0)
            _refuse_one_object(file, stream)
    return start[:1] != b"["


def _refuse_one_object(file: Path, stream: Any) -> None:
    """Ends the reading of a file that is one object over many lines, such as {"data": [...]}."""
    first = stream.readline()
    stream.seek(0)
    try:
        json.loads(first.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        try:
            whole = json.loads(stream.read().removeprefix(codecs.BOM_UTF8))
        except (ValueError, RecursionError):
            whole = None
        stream.seek(0)
        if isinstance(whole, dict):
            keys = ", ".join(map(repr, list(whole)[:8]))
            raise DataError(
                f"{file}: it is one object with the keys {keys}; expected is a list of rows, or "
                "one row a line. Put the rows alone into the file."
            ) from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _SameKey(repr(twice[:40]))
    return made


def read_lines(name: str, lines: Iterable[bytes], first: int = 1) -> Iterator[RowOrProblem]:
    """A row for each line that is not blank; `first` is the number of the first line."""
    decode = json.JSONDecoder(object_pairs_hook=_object).decode
    for number, line in enumerate(lines, first):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.isspace() or not line:
            continue
        origin = Origin(name, number)
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            shown = line.decode("utf-8", errors="backslashreplace")
            at = len(line[: error.start].decode("utf-8"))
            yield RowProblem(
                str(origin), "", NOT_UTF8, SAVE_AS_UTF8, "", at + 1, shorten(shown, at)
            )
            continue
        try:
            yield Row(decode(text), origin)
        except (ValueError, RecursionError) as error:
            yield _problem(origin, text, error)


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
        what, fix = _NUL_BYTES
    elif _BOM in where:
        what, fix = _BOM_INSIDE
    elif not error.msg.startswith("Unterminated") and not text[at:].strip():
        what, fix = _ENDS_EARLY
    line, found = origin.line + text.count("\n", 0, at), ""
    line_start = text.rfind("\n", 0, at) + 1
    position = at - line_start + 1
    if line == origin.line:
        position += column
    else:
        found = f" (in the row that starts on line {origin.line})"
    shown = shorten(text[line_start:].partition("\n")[0], at - line_start)
    return RowProblem(f"{origin.file}:{line}", "", f"not JSON: {what}", fix, found, position, shown)


class ListPlace(NamedTuple):
    """Where a row of a list begins.

    Attributes:
        position: in the text; a row that was begun and not ended stands beyond its end.
        line: the number of its line.
        first_key: how rows begin, as the first whole one showed.
        is_behind_comma: whether a comma promised it.
    """

    position: int
    line: int
    first_key: str = ""
    is_behind_comma: bool = False


def read_list(file: Path, name: str) -> Iterator[RowOrProblem]:
    """The rows of a list; behind a broken one it goes on where the next row seems to begin."""
    content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    text = content.decode("utf-8", errors="surrogateescape")
    del content
    for row, _ in rows_of_list(text, name, first_place(text)):
        yield row


def first_place(text: str) -> ListPlace:
    """Where the first row of a list begins."""
    position = _skip(text, _skip(text, 0) + 1)
    return ListPlace(position, 1 + text.count("\n", 0, position))


def rows_of_list(
    text: str, name: str, place: ListPlace, *, is_whole: bool = True
) -> Iterator[tuple[RowOrProblem, ListPlace]]:
    """The rows from a place on, each with the place of the next.

    Args:
        text: of a list.
        name: how messages call the file.
        place: where a row begins.
        is_whole: whether the list ends with the text; otherwise the rows end before the first one
            that more text could change.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    position, line, first_key, is_behind_comma = place
    counted = position

    def place_at(position: int, *, is_behind_comma: bool = False) -> ListPlace:
        lines = text.count("\n", counted, position)
        return ListPlace(position, line + lines, first_key, is_behind_comma)

    if position < len(text):
        place = place_at(_skip(text, position), is_behind_comma=is_behind_comma)
    while True:
        start, line, first_key, is_behind_comma = place
        counted = start
        origin = Origin(name, line)
        if start > len(text) or (start == len(text) and not is_whole):
            return
        if start == len(text):
            end = len(text.rstrip())
            problem = _outside(
                text, origin, max(end - 1, 0), start, "the file ends inside the list"
            )
            yield problem, ListPlace(start + 1, line, first_key)
            return
        if text[start] == "]":
            position = _skip(text, start + 1)
            following = _next_row(text, position, first_key)
            if following == len(text) and not is_whole:
                return
            if is_behind_comma:
                comma = max(text.rfind(",", 0, start), 0)
                place = place._replace(is_behind_comma=False)
                yield _outside(text, origin, comma, start, _IDLE_COMMA), place
            if position == len(text):
                return
            place = place_at(following if following < len(text) else following + 1)
            yield _outside(text, origin, position, start, "text behind the end of the list"), place
            continue
        values, position, error = _decode(decoder, text, start)
        mark = text[position : position + 1]
        if not is_whole and (not mark if error is None else _is_cut(text, error)):
            return
        if error is None and mark in (",", "]", ""):
            if mark:
                first_key = first_key or _key_of(text, start)
            if mark == ",":
                place = place_at(_skip(text, position + 1), is_behind_comma=True)
            else:
                place = place_at(position)
            yield Row(values, origin), place
            continue
        position = _next_row(text, start, first_key or _key_of(text, start))
        if position == len(text) and not is_whole:
            return
        place = place_at(position if position < len(text) else position + 1)
        yield _broken(decoder, text, start, position, origin), place


def _is_cut(text: str, error: ValueError | RecursionError) -> bool:
    """Whether a value may have no end only because the text has one."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated") or error.pos > len(text) - _LONGEST_WORD


def _decode(
    decoder: json.JSONDecoder, text: str, start: int
) -> tuple[Any, int, ValueError | RecursionError | None]:
    """A value, where what follows it begins, and why there is no value."""
    try:
        values, end = decoder.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        return None, start, error
    return values, _skip(text, end), None


def _skip(text: str, position: int) -> int:
    """The next position that is no space."""
    found = _SPACE.match(text, position)
    assert found is not None
    return found.end()


def _key_of(text: str, start: int) -> str:
    found = _FIRST_KEY.match(text, start)
    return found[1] if found else ""


def _next_row(text: str, start: int, key: str) -> int:
    """Where a row seems to begin behind `start`; the end of the text when nowhere.

    Rows that begin their lines are found by their indentation, others by their first key.
    """
    indentation = text[text.rfind("\n", 0, start) + 1 : start]
    if indentation.strip(" \t") or not start:
        pattern = rf"[,\n]\s*(?=\{{\s*{re.escape(key)}\s*:)" if key else r"\n[ \t]*(?=\{)"
    else:
        pattern = rf"\n{indentation}(?=\{{)"
    found = re.compile(pattern).search(text, start)
    return found.end() if found else len(text)


def _broken(
    decoder: json.JSONDecoder, text: str, start: int, end: int, origin: Origin
) -> RowProblem:
    """What is wrong with the row between `start` and `end`."""
    column = start - text.rfind("\n", 0, start) - 1
    row = text[start:end].rstrip(" \t\r\n")
    if end == len(text):
        row = row.removesuffix("]").rstrip(" \t\r\n")
    if row == ",":
        return _outside(text, origin, start, start, _IDLE_COMMA)
    row = row.removesuffix(",")
    try:
        decoder.decode(row)
    except (ValueError, RecursionError) as error:
        return _problem(origin, row, error, column)
    return _outside(text, origin, start + len(row), start, "no comma behind the row")


def _outside(text: str, origin: Origin, position: int, counted: int, what: str) -> RowProblem:
    """A problem between the rows; `origin` is that of the position `counted`."""
    between = text.count("\n", min(counted, position), max(counted, position))
    line = origin.line + (between if position >= counted else -between)
    line_start = text.rfind("\n", 0, position) + 1
    shown = shorten(text[line_start:].partition("\n")[0], position - line_start)
    return RowProblem(
        f"{origin.file}:{line}",
        "",
        f"not JSON: {what}",
        "Rows stand between [ and ], a comma between each two.",
        position=position - line_start + 1,
        excerpt=shown,
    )
