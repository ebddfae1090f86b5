"""where the rows of a packed example stand, in few words."""

from __future__ import annotations

from collections.abc import Iterable

MOST_NAMED = 32
"""So many places are listed; of more, the rest is counted."""


def place(origin: str, row: int) -> str:
    """Where a row stands; in a JSON array, whose rows may all be on one line, by its number, too.

    Args:
        origin: `file:line`.
        row: its number in the data set, from 0.
    """
    is_array = origin.rpartition(":")[0].endswith(".json")
    return f"{origin} (row {row + 1:,})" if is_array else origin


def join_origins(origins: Iterable[str]) -> str:
    """Several places `file:line` as one text: `rows.jsonl:3, 17, 40; other.jsonl:2`.

    Args:
        origins: each once or several times; files and lines come in the order of their first.
    """
    distinct = list(dict.fromkeys(origins))
    lines: dict[str, list[str]] = {}
    for origin in distinct[:MOST_NAMED]:
        file, _, line = origin.rpartition(":")
        lines.setdefault(file, []).append(line)
    named = [f"{file}:{', '.join(of)}" if file else ", ".join(of) for file, of in lines.items()]
    more = len(distinct) - MOST_NAMED
    return "; ".join(named) + (f" and {more:,} more" if more > 0 else "")
