"""a path -> the data files behind it, all of one kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from luthier.errors import DataError

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt")
"""The kinds of files that rows are read from."""


def find_files(name: str, location: str | Path) -> tuple[Path, ...]:
    """The file, or the data files of a folder in the order of their names.

    Hidden files and files of no data kind (a README) are passed over.

    Args:
        name: the data set, for messages.
        location: a file or a folder.

    Raises:
        DataError: if nothing is there, nothing in it is data, or kinds are mixed.
    """
    path = Path(location)
    if not path.exists():
        raise DataError(
            f"data set {name!r}: there is no file or folder {path}. Relative names in "
            "dataset_info.json start at dataset_dir."
        )
    kinds = ", ".join(SUFFIXES)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"data set {name!r}: {path} is none of the kinds {kinds}.")
        return (path,)
    names = [file.name for file in path.iterdir() if file.is_file()]
    return tuple(path / one for one in pick_data_files(name, f"the folder {path}", names))


def file_name(path: str) -> str:
    """The last part of a path or a URL, without what is asked or signed behind it."""
    return Path(path.partition("?")[0] if "://" in path else path).name


def pick_data_files(name: str, folder: str, paths: Sequence[str]) -> list[str]:
    """Those of the paths that hold data, in the order of their names.

    Args:
        name: the data set, for messages.
        folder: what holds them, for messages.
        paths: files of one folder.

    Raises:
        DataError: if none holds data, or kinds are mixed.
    """
    suffixes = {path: Path(file_name(path)).suffix.lower() for path in sorted(paths)}
    files = [
        path
        for path, suffix in suffixes.items()
        if suffix in SUFFIXES and not file_name(path).startswith(".")
    ]
    found = Counter(suffixes[path] for path in files)
    if not files:
        raise DataError(
            f"data set {name!r}: {folder} has no file of the kinds {', '.join(SUFFIXES)}."
        )
    if len(found) > 1:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.items()))
        raise DataError(
            f"data set {name!r}: {folder} mixes kinds of files ({listed}). Put each kind into a "
            "folder of its own."
        )
    return files
