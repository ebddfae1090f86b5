"""a data set's description -> its rows from any position on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luthier.data.catalog import DatasetDescription
from luthier.data.cloud import find_urls
from luthier.data.rows import Row, without_nulls
from luthier.data.sources import HubAccess, load_from_hub, told_in_a_sentence
from luthier.data.streaming.places import DataFile, Entry, Parsed, Position
from luthier.records import Origin
from luthier.secrecy import masked


class FileRows:
    """The rows of files that follow each other.

    Args:
        files: all of one kind.
        told: which files beside them are not read; empty where there are none.
    """

    def __init__(self, files: tuple[DataFile, ...], told: str = "") -> None:
        self.files, self.told = files, told

    def rows(self, position: Position = None) -> Iterator[tuple[Entry, Position]]:
        """Those behind a position, which is the file's number and the position in it."""
        first, inside = position or (0, None)
        for number, file in enumerate(self.files[first:], first):
            for entry, behind in file.rows(inside):
                yield entry, [number, behind]
            inside = None

    def stamps(self) -> dict[str, str]:
        """What tells each file from another one of its name."""
        return {file.name: file.stamp() for file in self.files}


class HubRows:
    """The rows of a data set of the hub, as its library reads them.

    Args:
        description: of the data set.
        access: how the hub is asked.
    """

    def __init__(self, description: DatasetDescription, access: HubAccess) -> None:
        self.name, self.description, self.told = description.location, description, ""
        self._rows = load_from_hub(description, access, is_streamed=True)

    def rows(self, position: Position = None) -> Iterator[tuple[Entry, Position]]:
        """Those behind a position, which is the number of rows and the library's own state."""
        number, state = position or (0, None)
        with told_in_a_sentence(self.description):
            rows = self._rows.take(1 << 62)  # a copy: the state belongs to this reading alone
            if state is not None:
                rows.load_state_dict(state)
            for values in rows:
                number += 1
                yield (
                    Parsed(Row(without_nulls(values), Origin(self.name, number)), _size(values)),
                    [number, rows.state_dict()],
                )

    def stamps(self) -> dict[str, str]:
        """The name alone: nothing is known of the files without fetching them."""
        return {self.name: self.name}


def open_rows(description: DatasetDescription, access: HubAccess) -> FileRows | HubRows:
    """The rows of a data set, wherever it lies; nothing of them is read yet.

    Raises:
        DataError: if there are no files, or the hub or the cloud cannot be asked.
    """
    if description.place == "hub":
        return HubRows(description, access)
    name, by = description.name, description.sample_by
    if description.place == "cloud":
        urls, told = find_urls(name, description.location, access.token, description.split)
        return FileRows(tuple(DataFile(url, masked(url), access.token, by) for url in urls), told)
    files, told = description.find_files()
    return FileRows(tuple(DataFile(file, str(file), sample_by=by) for file in files), told)


def _size(value: Any) -> int:
    """About how many bytes a value takes as text."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8
