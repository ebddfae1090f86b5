"""a URL of cloud storage or of the hub's files -> its data files, there or as copies here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from luthier import console
from luthier.data.files import pick_data_files
from luthier.data.reader import file_name
from luthier.errors import DataError
from luthier.secrecy import masked

LOCAL = ("file", "local")
"""Protocols that stand before a path of this machine."""

CLOUD = (
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "obs", "tos", "oci"),
    *("hdfs", "webhdfs", "hf", "http", "https"),
)
"""Protocols that read a cloud. One that is in neither list may read this machine by a detour."""


def is_url(name: str) -> bool:
    """Whether a data set's place is written as a URL: `s3://bucket/rows.jsonl`."""
    return "://" in name


def protocol_of(url: str) -> str:
    """What stands before `://`."""
    return url.partition("://")[0]


def is_of_cloud(url: str) -> bool:
    """Whether a URL, each of its parts where it is a chain, reads a cloud and not this machine."""
    return all(protocol_of(one) in CLOUD for one in url.split("::"))


def check_url(name: str, url: str) -> None:
    """Looks whether the package that reads such URLs is installed, and names it if not."""
    import fsspec

    if "::" in url:
        raise DataError(
            masked(f"data set {name!r}: {url} is a chain of URLs; name one file or folder by one.")
        )
    try:
        fsspec.get_filesystem_class(protocol_of(url))
    except (ImportError, ValueError) as error:
        raise DataError(masked(f"data set {name!r}: {url} cannot be read: {error}")) from error


def find_cloud_files(
    name: str,
    url: str,
    token: str | None = None,
    split: str | None = None,
    *,
    folder: Path | None = None,
) -> tuple[list[tuple[Path | str, str]], str]:
    """The data files behind a URL of a file or a folder, to be read there or copied to `folder`.

    Each with its URL, and which files were left out. A file that changed at its place, as its size,
    time or checksum there tell, is fetched again. Credentials are those that the cloud's own
    library finds in the environment; `token` is a login of the hub, for `hf://`. The protocol is
    one that fsspec knows (s3, gs, gcs, az, hf, https).

    Raises:
        DataError: if nothing is there, or the cloud cannot be asked.
    """
    import fsspec

    check_url(name, url)
    try:
        options = {"token": token} if token and protocol_of(url) == "hf" else {}
        system, path = fsspec.core.url_to_fs(url, **options)
        is_folder = system.isdir(path)
        if not is_folder and not system.exists(path):
            raise FileNotFoundError(path)
        if not is_folder and split not in (None, "train"):
            raise DataError(
                f'data set {name!r}: "split" is {split!r}, and {url} is one file. Take "split" '
                "away."
            )
        paths = [str(one) for one in system.ls(path, detail=False)] if is_folder else [str(path)]
        paths, told = pick_data_files(name, url, paths, split if is_folder else None)
        urls = [str(system.unstrip_protocol(one)) for one in paths]
        if folder is None:
            return [(one, one) for one in urls], told
        copies = [_fetch(system, one, folder) for one in paths]
        return list(zip(copies, urls, strict=True)), told
    except DataError:
        raise
    except Exception as error:  # each cloud's library has errors of its own beside OSError
        raise DataError(
            masked(
                f"data set {name!r}: {url} cannot be fetched: {type(error).__name__}: {error}. "
                "Check the name, the network, and the credentials in the environment."
            )
        ) from error


def _fetch(system: Any, path: str, folder: Path) -> Path:
    """The copy of a file, made once for each of its versions."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    url = system.unstrip_protocol(path)
    digest = hashlib.sha256(f"{url}\0{system.ukey(path)}".encode()).hexdigest()[:16]
    copy = folder / f"{digest}-{file_name(path)}"
    with FileLock(f"{copy}.lock"):
        if not copy.exists():
            console.info(f"fetching {url}")
            part = copy.with_name(f"{copy.name}.part")
            system.get_file(path, str(part))
            os.replace(part, copy)
    return copy
