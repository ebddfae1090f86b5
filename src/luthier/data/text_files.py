"""a text file -> its paragraphs, or all of it, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TextIO, TypeAlias

from luthier.data.rows import Row
from luthier.records import Origin

SampleBy: TypeAlias = Literal["line", "paragraph", "document"]
"""What of a text file is a row, in the words of the text loader of `datasets`."""


def read_paragraphs(file: Path, name: str) -> Iterator[Row]:
    """Stretches of lines between blank lines, without the line end behind the last.

    Args:
        file: where they stand.
        name: how messages call it.
    """
    together: list[str] = []
    first = 1
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.isspace():
                if together:
                    yield _row(together, name, first)
                    together = []
                continue
            if not together:
                first = number
            together.append(line)
    if together:
        yield _row(together, name, first)


def read_whole(file: Path, name: str) -> Iterator[Row]:
    """The text of the file as one row; none where it is blank."""
    with _open(file) as stream:
        text = stream.read()
    if text and not text.isspace():
        yield Row({"text": text}, Origin(name, 1))


WHOLE_TEXTS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    "paragraph": read_paragraphs,
    "document": read_whole,
}
"""The ways of `sample_by` that do not take a line for a row."""


def _open(file: Path) -> TextIO:
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _row(lines: list[str], name: str, first: int) -> Row:
    return Row({"text": "".join(lines).rstrip("\r\n")}, Origin(name, first))
