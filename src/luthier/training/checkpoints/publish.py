"""A stage with all its files -> a checkpoint under its name, in one move."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

from luthier.training.checkpoints.folders import files_below, throw_away
from luthier.training.checkpoints.manifest import FILE_NAME, Manifest
from luthier.training.checkpoints.verify import hash_files


def publish(stage: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Hashes and syncs what was staged, and gives it its name.

    Whoever looks meets the whole checkpoint or none, whenever the machine stops: the files and
    their folders are on disk before the one rename, and that is on disk before this returns. A
    checkpoint of the same name gives way.

    Args:
        stage: the folder that all ranks have written to; none writes any more.
        folder: where it is published, on the same file system.
        manifest: what the checkpoint was made with; its `files` are filled in here.

    Returns:
        The manifest as it was written.

    Raises:
        OSError: if a file cannot be read, written or moved. The stage is left as it is.
    """
    sealed = seal(stage, manifest)
    if folder.is_dir():
        throw_away(folder)
    stage.rename(folder)
    sync_folder(folder.parent)
    return sealed


def seal(stage: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest of a folder's files, and everything to disk."""
    paths = [path for path in files_below(stage) if path != stage / FILE_NAME]
    records = hash_files(paths, are_synced=True)
    names = [path.relative_to(stage).as_posix() for path in paths]
    sealed = replace(manifest, files=dict(zip(names, records, strict=True)))
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
