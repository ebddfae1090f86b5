"""A stage with all its files -> a checkpoint under its name, in one move."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from luthier.checkpoints.folders import files_below, throw_away
from luthier.checkpoints.manifest import FILE_NAME, FileRecord, Manifest
from luthier.checkpoints.verify import NUM_THREADS, hash_file


class Sealing:
    """Hashes and syncs files of a stage while others are still being written."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS)
        self._begun: dict[Path, tuple[tuple[int, int, int], Future[FileRecord]]] = {}

    def begin(self, paths: Iterable[Path]) -> None:
        """Begins with files that are whole; one that is written again is hashed again."""
        for path in paths:
            stamp = _stamp(path)
            if path not in self._begun or self._begun[path][0] != stamp:
                self._begun[path] = stamp, self._pool.submit(hash_file, path, is_synced=True)

    def records(self, stage: Path) -> dict[str, FileRecord]:
        """Size and hash of all files of a stage, none of which is written any more, by name.

        Raises:
            OSError: if one cannot be read or synced.
        """
        paths = files_below(stage)
        self.begin(paths)
        return {path.relative_to(stage).as_posix(): self._begun[path][1].result() for path in paths}

    def close(self) -> None:
        """Leaves what is not begun, and waits for the rest."""
        self._pool.shutdown(cancel_futures=True)


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def publish(
    stage: Path, folder: Path, manifest: Manifest, sealing: Sealing | None = None
) -> Manifest:
    """Hashes and syncs what was staged, and gives it its name.

    Whoever looks meets the whole checkpoint or none, whenever the machine stops: the files and
    their folders are on disk before the one rename, and that is on disk before this returns. A
    checkpoint of the same name gives way.

    Args:
        stage: the folder that all ranks have written to; none writes any more.
        folder: where it is published, on the same file system.
        manifest: what the checkpoint was made with; its `files` are filled in here.
        sealing: what has hashed and synced some of the files already.

    Returns:
        The manifest as it was written.

    Raises:
        OSError: if a file cannot be read, written or moved. The stage is left as it is.
    """
    sealed = seal(stage, manifest, sealing)
    if folder.is_dir():
        throw_away(folder)
    stage.rename(folder)
    sync_folder(folder.parent)
    return sealed


def seal(stage: Path, manifest: Manifest, sealing: Sealing | None = None) -> Manifest:
    """Writes the manifest of a folder's files, and everything to disk."""
    (stage / FILE_NAME).unlink(missing_ok=True)
    own = Sealing() if sealing is None else sealing
    try:
        sealed = replace(manifest, files=own.records(stage))
    finally:
        own.close()
    with (stage / FILE_NAME).open("w", encoding="utf-8") as file:
        file.write(sealed.text())
        file.flush()
        os.fsync(file.fileno())
    for folder in [*(path for path in stage.rglob("*") if path.is_dir()), stage]:
        sync_folder(folder)
    return sealed


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk, where the file system can be told to."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
