"""The folder that an export becomes: looked at first, staged beside it, whole or not there."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from luthier import console
from luthier.checkpoints.files import delete, stage_folder
from luthier.checkpoints.fingerprint import versions
from luthier.checkpoints.lock import FILE_NAME, OutputLock, holder
from luthier.checkpoints.manifest import Manifest
from luthier.checkpoints.publish import check_space, describe, is_write_failure, publish
from luthier.errors import CheckpointError, SaveError


def check_target(folder: Path, knob: str = "export_dir") -> None:
    """Refuses what an export would overwrite, or write through: a CheckpointError.

    `knob` is by what the user has named the folder.
    """
    if folder.is_symlink():
        raise CheckpointError(
            f"{knob}: {folder} is a symbolic link, and what it leads to would be replaced. "
            "Name the folder itself."
        )
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{knob}: {folder} is a file. Name a folder that is not there.")
    if folder.is_dir() and (found := sorted(path.name for path in folder.iterdir())):
        raise CheckpointError(
            f"{knob}: {folder} is not empty ({', '.join(found[:3])}"
            f"{' ...' if len(found) > 3 else ''}). An export overwrites nothing, so that no file "
            "of another model stays among its own: name a new folder."
        )


def free_bytes(folder: Path) -> int:
    """What is free on the disk that a folder is, or will be, on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def new_manifest(seed: int = 42) -> Manifest:
    """What a folder that was not trained here, but made of what was, says of itself."""
    return Manifest(
        step=0,
        max_steps=0,
        run_id=uuid.uuid4().hex,
        written=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        world_size=1,
        strategy="single",
        seed=seed,
        examples_per_step=0,
        versions=versions(),
        end="exported",
    )


@contextmanager
def staged(
    folder: Path, needed: int, manifest: Manifest, knob: str = "export_dir"
) -> Iterator[Path]:
    """A new folder to write to, which becomes `folder` when all went well, in one move.

    Whoever is killed leaves at most a hidden folder beside it, which the next export of the same
    name deletes; any error leaves nothing.

    Args:
        folder: where it is published.
        needed: bytes that will be written.
        manifest: what is published says of itself; its files are filled in.
        knob: by what the user has named the folder.

    Raises:
        CheckpointError: if the folder is full, a link or no folder.
        SaveError: if it cannot be written.
    """
    check_target(folder, knob)
    parents = [path for path in folder.parents if not path.exists()]
    stage = stage_folder(folder.parent, folder.name, uuid.uuid4().hex)
    lock = OutputLock(stage)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        check_space(folder.parent, needed)
        stage.mkdir()
        lock.acquire()
        yield stage
        check_target(folder, knob)
        (stage / FILE_NAME).unlink()
        if folder.is_dir():
            folder.rmdir()
        publish(stage, folder, manifest)
    except BaseException as problem:
        _leave_nothing(stage, parents)
        if is_write_failure(problem) and not isinstance(problem, SaveError):
            raise SaveError(
                f"{knob}: {folder} cannot be written: {describe(problem)}. Nothing was "
                "published; make room, or name another place."
            ) from problem
        raise
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Deletes the stages of exports to this folder that were killed."""
    name = re.compile(rf"\.stage-{re.escape(folder.name)}-[0-9a-f]{{12}}")
    for path in sorted(folder.parent.iterdir()):
        if name.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            if holder(path) is None:
                console.info(f"{path} was left by an export that was cut off, and is deleted")
                delete(path)


def _leave_nothing(stage: Path, parents: list[Path]) -> None:
    if stage.exists():
        delete(stage)
    for path in parents:
        try:
            os.rmdir(path)
        except OSError:
            return
