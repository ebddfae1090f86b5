"""A file is whole or not there: written aside, synced, renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
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
    """Writes one JSON value, indented, in one move."""
    return write_whole(path, [json.dumps(value, indent=2, ensure_ascii=False), "\n"])
