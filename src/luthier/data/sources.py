"""a data set's place -> its rows from any position on, in chunks, and the hash of their content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.cache import cache_root, hash_of_file
from luthier.data.catalog import DatasetDescription, is_offline
from luthier.data.cloud import find_cloud_files, is_of_cloud
from luthier.data.reader import (
    NUM_TOGETHER,
    ArrowRow,
    Chunk,
    DataFile,
    Parsed,
    Position,
    RawRows,
    Row,
    RowOrProblem,
    gather,
    without_nulls,
)
from luthier.errors import DataError
from luthier.records import Origin
from luthier.secrecy import masked

if TYPE_CHECKING:
    from luthier.arguments.model import ModelArguments


@dataclass(frozen=True)
class HubAccess:
    """How the hub is asked, and where what comes from afar is kept."""

    cache_dir: str | None = None  # where downloads are kept; None for the library's own place
    token: str | None = None  # a login
    num_workers: int | None = None  # processes that prepare a download

    @classmethod
    def of(cls, model: ModelArguments, num_workers: int | None = None) -> HubAccess:
        """That of a configuration."""
        token = model.hf_hub_token
        return cls(model.cache_dir, token.get_secret_value() if token else None, num_workers)


class Source:
    """The rows of one data set, wherever it lies.

    Args:
        description: of the data set.
        access: how the hub is asked.
        in_place: whether rows come as they are read; otherwise files of a cloud, and data sets of
            the hub, are copied here first.

    Attributes:
        files: none where the hub's library holds the rows.
        told: which files beside them are not read; empty where there are none.

    Raises:
        DataError: if there are no files, or the hub or the cloud cannot give the data.
    """

    def __init__(
        self,
        description: DatasetDescription,
        access: HubAccess | None = None,
        *,
        in_place: bool = False,
    ) -> None:
        access = access or HubAccess()
        name, by, told = description.name, description.sample_by, ""
        self.description, self._in_place = description, in_place
        self._root = cache_root(access.cache_dir)
        self._hub_rows: Any = None
        files: list[DataFile] = []
        if description.place == "hub":
            self._hub_rows = load_from_hub(description, access, is_streamed=in_place)
        elif description.place == "cloud":
            folder = None if in_place else self._root / "fetched"
            found, told = find_cloud_files(
                name, description.location, access.token, description.split, folder=folder
            )
            token = access.token if in_place else None
            files = [DataFile(place, masked(url), token, by) for place, url in found]
        else:
            paths, told = description.find_files()
            files = [DataFile(path, str(path), sample_by=by) for path in paths]
        self.files, self.told = tuple(files), told

    def hashes(self) -> dict[str, str]:
        """What tells each file, as messages name it, from another one of its name.

        Of files that are here it is the sha256 of their bytes; of files that are read in place
        their size and their beginning, and of a data set of the hub its name.
        """
        if self._hub_rows is not None:
            location = self.description.location
            return {location: location if self._in_place else str(self._hub_rows._fingerprint)}
        if self._in_place:
            return {file.name: file.stamp() for file in self.files}
        return {file.name: hash_of_file(Path(file.place), self._root) for file in self.files}

    def raw_rows(self, position: Position = None) -> RawRows:
        """The rows behind a position, which is a file's number and the position in it.

        Raises:
            DataError: if a file is broken in a way that hides where its next row starts.
        """
        if self._hub_rows is not None:
            yield from self._rows_of_hub(position)
        first, inside = position if position and self.files else (0, None)
        for number, file in enumerate(self.files[first:], first):
            for row, behind in file.rows(inside):
                yield row, [number, behind]
            inside = None

    def rows(self) -> Iterator[RowOrProblem]:
        """Every row in order; a row that cannot be parsed comes as a problem."""
        return (raw.row() for raw, _ in self.raw_rows())

    def chunks(self) -> Iterator[Chunk]:
        """The rows in chunks, each for one process."""
        if self._hub_rows is not None:
            yield from gather(row for row, _ in self._rows_of_hub(None))
        for file in self.files:
            yield from file.chunks()

    def _rows_of_hub(self, position: Position) -> RawRows:
        name = self.description.location
        number, state = position or (0, None)
        if not self._in_place:
            for table in self._hub_rows.with_format("arrow").iter(NUM_TOGETHER):
                for batch in table.combine_chunks().to_batches():
                    size = batch.nbytes // max(batch.num_rows, 1)
                    for at in range(batch.num_rows):
                        number += 1
                        yield ArrowRow(batch, at, Origin(name, number), size), [number, None]
            return
        with told_in_a_sentence(self.description):
            rows = self._hub_rows.take(1 << 62)  # a copy: the state belongs to this reading alone
            if state is not None:
                rows.load_state_dict(state)
            for values in rows:
                number += 1
                row = Row(without_nulls(values), Origin(name, number))
                yield Parsed(row, _size(values)), [number, rows.state_dict()]


def _size(value: Any) -> int:
    """About how many bytes a value takes as text."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


def load_from_hub(
    description: DatasetDescription, hub: HubAccess, *, is_streamed: bool = False
) -> Any:
    """A data set of the hub, as `datasets` gives it: a table, or rows as they are read."""
    import datasets

    with told_in_a_sentence(description):
        builder = datasets.load_dataset_builder(
            description.location,
            name=description.subset,
            data_dir=description.folder,
            cache_dir=hub.cache_dir,
            token=hub.token,
        )
        for file in (one for some in (builder.config.data_files or {}).values() for one in some):
            if not is_of_cloud(str(file)):  # a README on the hub may name files of this machine
                raise DataError(
                    f"data set {description.name!r} ({description.location!r} on the hub): it "
                    f"names {file}, which is no file of the hub. It is not read."
                )
        split = description.split or "train"
        if is_streamed:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare(num_proc=hub.num_workers)
        return builder.as_dataset(split=split)


@contextmanager
def told_in_a_sentence(description: DatasetDescription) -> Iterator[None]:
    """Says what `datasets` cannot do; it raises errors of many families."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        asked = f"data set {description.name!r} ({description.location!r} on the hub)"
        if is_offline() and isinstance(error, OSError):  # nothing asked, nothing found
            raise DataError(
                f"{asked}: HF_HUB_OFFLINE is set and it is not in the local cache. Unset it, or "
                "give a file or folder in `dataset`."
            ) from error
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        said = next(iter(str(cause).strip().splitlines()), "").rstrip(".")
        raise DataError(
            f"{asked}: it cannot be loaded: {type(cause).__name__}: {said}. Check the name, subset "
            "and split, the network and the login, or give a file or folder in `dataset`."
        ) from error
