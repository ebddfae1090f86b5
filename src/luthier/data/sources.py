"""data files -> rows, each with the line it stands on."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.catalog import DatasetDescription, is_offline
from luthier.data.check import RowProblem
from luthier.data.files import find_files
from luthier.data.json_rows import read_json
from luthier.data.rows import Row, RowOrProblem
from luthier.errors import DataError
from luthier.records import Origin

__all__ = ["HubAccess", "Row", "RowOrProblem", "Source"]


@dataclass(frozen=True)
class HubAccess:
    """How the hub is asked.

    Attributes:
        cache_dir: where downloads are kept; None for the library's own place.
        token: a login.
        num_workers: processes that prepare a download.
    """

    cache_dir: str | None = None
    token: str | None = None
    num_workers: int | None = None


class Source:
    """The rows of one data set and the hash of their content.

    Raises:
        DataError: if there are no files, or the hub cannot give the data.
    """

    def __init__(self, description: DatasetDescription, hub: HubAccess | None = None) -> None:
        self.description = description
        self._hub_rows: Any = None
        self.files: tuple[Path, ...] = ()
        if description.place == "hub":
            self._hub_rows = _load_from_hub(description, hub or HubAccess())
        else:
            self.files = find_files(description.name, description.location)

    def hashes(self) -> dict[str, str]:
        """Each file, as messages name it, with the sha256 of its bytes."""
        if self._hub_rows is not None:
            return {self.description.location: str(self._hub_rows._fingerprint)}
        return {str(file): _sha256(file) for file in self.files}

    def rows(self) -> Iterator[RowOrProblem]:
        """Every row in order; a row that cannot be parsed comes as a problem.

        Raises:
            DataError: if a file is broken in a way that hides where its next row starts.
        """
        if self._hub_rows is not None:
            for number, values in enumerate(self._hub_rows, 1):
                yield Row(values, Origin(self.description.location, number))
        for file in self.files:
            yield from _READERS[file.suffix.lower()](file)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_csv(file: Path) -> Iterator[RowOrProblem]:
    """Rows under a header; every value is text, empty cells included."""
    csv.field_size_limit(1 << 30)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream)
        header: list[str] | None = None
        while True:
            origin = Origin(str(file), reader.line_num + 1)
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield RowProblem(str(origin), "", "not CSV", "Mend the line.", f": {error}")
                continue
            if cells is None:
                return
            if header is None:
                header = cells
            elif len(cells) == len(header):
                yield Row(dict(zip(header, cells, strict=True)), origin)
            elif cells:
                yield RowProblem(
                    str(origin),
                    "",
                    "another number of cells than the header",
                    'Put texts with commas or line breaks into quotes ("...").',
                    f" ({len(cells)}, not {len(header)})",
                )


def _read_text(file: Path) -> Iterator[RowOrProblem]:
    """Each line that is not blank as the column `text`."""
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.split(b"\n"), 1):
        if line and not line.isspace():
            text = line.rstrip(b"\r").decode("utf-8", errors="surrogateescape")
            yield Row({"text": text}, Origin(str(file), number))


def _read_parquet(file: Path) -> Iterator[RowOrProblem]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            yield from _number(file, opened.iter_batches(batch_size=1000))
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(file, "parquet", error) from error


def _read_arrow(file: Path) -> Iterator[RowOrProblem]:
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(file)) as stream:
            try:
                opened = pyarrow.ipc.open_file(stream)
                batches = (opened.get_batch(at) for at in range(opened.num_record_batches))
            except pyarrow.ArrowInvalid:
                stream.seek(0)
                batches = iter(pyarrow.ipc.open_stream(stream))
            yield from _number(file, batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(file, "arrow", error) from error


def _number(file: Path, batches: Iterator[Any]) -> Iterator[RowOrProblem]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Row(values, Origin(str(file), number))


def _unreadable(file: Path, kind: str, error: Exception) -> DataError:
    return DataError(f"{file}: it cannot be read as {kind}: {error}. Is the file whole?")


_READERS: dict[str, Callable[[Path], Iterator[RowOrProblem]]] = {
    ".json": read_json,
    ".jsonl": read_json,
    ".csv": _read_csv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


def _load_from_hub(description: DatasetDescription, hub: HubAccess) -> Any:
    import datasets

    name = description.location
    asked = f"data set {description.name!r} ({name!r} on the hub)"
    try:
        return datasets.load_dataset(
            name,
            name=description.subset,
            data_dir=description.folder,
            split=description.split,
            cache_dir=hub.cache_dir,
            token=hub.token,
            num_proc=hub.num_workers,
        )
    except (OSError, ValueError, RuntimeError) as error:  # network, names, splits, login
        if is_offline():
            raise DataError(
                f"{asked}: HF_HUB_OFFLINE is set and it is not in the local cache. Unset it, or "
                "give a file or folder in `dataset`."
            ) from error
        raise DataError(
            f"{asked}: it cannot be loaded: {type(error).__name__}: {error}. Check the name, the "
            "split and the network, or give a file or folder in `dataset`."
        ) from error
