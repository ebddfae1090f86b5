"""a data set's place -> its rows, in stretches, and the hash of their content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.cache import cache_root, hash_of_file
from luthier.data.catalog import DatasetDescription, is_offline
from luthier.data.cloud import fetch, is_of_cloud
from luthier.data.rows import Row, RowOrProblem
from luthier.data.stretches import NUM_TOGETHER, Stretch, cut_batches, cut_file, gather
from luthier.data.text_files import WHOLE_TEXTS
from luthier.errors import DataError
from luthier.secrecy import masked

__all__ = ["HubAccess", "Row", "RowOrProblem", "Source"]


@dataclass(frozen=True)
class HubAccess:
    """How the hub is asked, and where what comes from afar is kept.

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

    Attributes:
        files: local files; none where the hub's library holds the rows.
        names: how messages call each.
        told: which files beside them are not read; empty where there are none.

    Raises:
        DataError: if there are no files, or the hub or the cloud cannot give the data.
    """

    def __init__(self, description: DatasetDescription, hub: HubAccess | None = None) -> None:
        self.description = description
        self._hub_rows: Any = None
        self.files: tuple[Path, ...] = ()
        self.told = ""
        access = hub or HubAccess()
        self._root = cache_root(access.cache_dir)
        if description.place == "hub":
            self._hub_rows = load_from_hub(description, access)
        elif description.place == "cloud":
            folder = self._root / "fetched"
            copies, self.told = fetch(
                description.name, description.location, folder, access.token, description.split
            )
            self.files = tuple(copy for copy, _ in copies)
            self.names = tuple(masked(url) for _, url in copies)
            return
        else:
            self.files, self.told = description.find_files()
        self.names = tuple(map(str, self.files))

    def hashes(self) -> dict[str, str]:
        """Each file, as messages name it, with the sha256 of its bytes."""
        if self._hub_rows is not None:
            return {self.description.location: str(self._hub_rows._fingerprint)}
        return {
            name: hash_of_file(file, self._root)
            for file, name in zip(self.files, self.names, strict=True)
        }

    def stretches(self) -> Iterator[Stretch]:
        """The rows in order, a stretch at a time.

        Raises:
            DataError: if a file is broken in a way that hides where its next row starts.
        """
        if self._hub_rows is not None:
            tables = self._hub_rows.with_format("arrow").iter(NUM_TOGETHER)
            batches = (batch for table in tables for batch in table.combine_chunks().to_batches())
            yield from cut_batches(batches, self.description.location)
        read = WHOLE_TEXTS.get(self.description.sample_by)
        for file, name in zip(self.files, self.names, strict=True):
            if read is not None and file.suffix.lower() == ".txt":
                yield from gather(read(file, name))
            else:
                yield from cut_file(file, name)

    def rows(self) -> Iterator[RowOrProblem]:
        """Every row in order; a row that cannot be parsed comes as a problem.

        Raises:
            DataError: as `stretches`.
        """
        for stretch in self.stretches():
            yield from stretch.rows()


def load_from_hub(
    description: DatasetDescription, hub: HubAccess, *, is_streamed: bool = False
) -> Any:
    """A data set of the hub, as `datasets` gives it: a table, or rows that come as they are read.

    Raises:
        DataError: if the hub cannot give it.
    """
    import datasets

    with told_in_a_sentence(description):
        builder = datasets.load_dataset_builder(
            description.location,
            name=description.subset,
            data_dir=description.folder,
            cache_dir=hub.cache_dir,
            token=hub.token,
        )
        _check_files(description, builder)
        split = description.split or "train"
        if is_streamed:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare(num_proc=hub.num_workers)
        return builder.as_dataset(split=split)


def _check_files(description: DatasetDescription, builder: Any) -> None:
    """Refuses files of this machine that a README on the hub may name."""
    for files in (builder.config.data_files or {}).values():
        for file in files:
            if not is_of_cloud(str(file)):
                raise DataError(
                    f"data set {description.name!r} ({description.location!r} on the hub): it "
                    f"names {file}, which is no file of the hub. It is not read."
                )


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
