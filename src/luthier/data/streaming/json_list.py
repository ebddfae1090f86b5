"""A list in one JSON text -> its rows, a window of the text at a time."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import IO, Any

from luthier.data.json_rows import ListPlace, first_place, rows_of_list
from luthier.data.rows import RowOrProblem

WINDOW_BYTES, MOST_BYTES = 4 << 20, 64 << 20
"""So much is decoded at a time, and for the sake of one row at most so much."""

BYTES_BEFORE = 4096
"""What stands before a row, as far as problems show it: the beginning of its line."""


def read_list_from(
    stream: IO[bytes], name: str, position: Any = None, *, window_bytes: int = WINDOW_BYTES
) -> Iterator[tuple[RowOrProblem, int, Any]]:
    """The rows behind a position, each with its bytes and the position behind it.

    A row, or a gap between two rows, of more than `MOST_BYTES` is a problem.

    Args:
        stream: of the whole file.
        name: how messages call it.
        position: one that was given; None for the start.
        window_bytes: how much is decoded at a time.
    """
    size = stream.seek(0, 2)
    byte, *rest = position or (0, 1, "", False)
    place = ListPlace(0, *rest)
    wanted = window_bytes
    while byte <= size:
        start = max(byte - BYTES_BEFORE, 0)
        stream.seek(start)
        content = stream.read(byte - start + wanted)
        is_last = start + len(content) == size
        if not is_last:
            content = content[: _last_boundary(content)]
        before = _decode(content[: byte - start], is_first=not start)
        text = before + _decode(content[byte - start :], is_first=not byte)
        del content
        place = place._replace(position=len(before))
        if not byte and "[" not in text and not is_last:
            wanted *= 2
            continue
        if not byte:
            byte = len(codecs.BOM_UTF8) if _has_mark(stream) else 0
            place = first_place(text)
            byte += _num_bytes(text[: place.position])
        is_forced = wanted >= MOST_BYTES and not is_last
        is_moved = False
        rows = rows_of_list(text, name, place, is_whole=is_last or is_forced)
        for row, behind in rows:
            length = _num_bytes(text[place.position : behind.position])
            length += max(behind.position - len(text), 0)
            byte, place, is_moved = byte + length, behind, True
            yield row, length, [byte, *behind[1:]]
            if is_forced:
                break
        if is_last:
            return
        wanted = window_bytes if is_moved else 2 * wanted


def _decode(content: bytes, *, is_first: bool = False) -> str:
    if is_first:
        content = content.removeprefix(codecs.BOM_UTF8)
    return content.decode("utf-8", errors="surrogateescape")


def _last_boundary(content: bytes) -> int:
    """Where the last character begins, which may be cut."""
    last = len(content) - 1
    while last > len(content) - 4 and content[last] & 0xC0 == 0x80:
        last -= 1
    return last


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", errors="surrogateescape"))


def _has_mark(stream: IO[bytes]) -> bool:
    stream.seek(0)
    return stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
