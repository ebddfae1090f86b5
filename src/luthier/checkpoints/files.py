"""A file is whole or not there: written aside, synced, renamed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, lines: Iterable[str]) -> Path:
    """Replaces a text file in one move, so that a reader never meets half of it.

    Args:
        path: the file; its folder is made when absent.
        lines: its text, in pieces that carry their own line ends.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Writes one JSON value, indented, in one move; numbers that JSON lacks become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return write_whole(path, [text, "\n"])


def finite(value: Any) -> Any:
    """`value` with None for every NaN and infinity in it, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
