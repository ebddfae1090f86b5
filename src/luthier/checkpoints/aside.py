"""Taking an output folder for a run: locked, an old run moved aside, leftovers swept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from luthier import console
from luthier.arguments.record import Arguments
from luthier.checkpoints.folders import list_checkpoints, sweep
from luthier.checkpoints.lock import FILE_NAME, OutputLock, last_holder, launch_of
from luthier.checkpoints.request_files import forget_requests, was_stopped
from luthier.errors import CheckpointError, Stopped
from luthier.processes.environment import distributed_environment, is_restart

MARKS = (
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "run.json",
    "trainer_log.jsonl",
    "trainer_state.json",
)
"""Files that only a run leaves in a folder."""


@contextmanager
def claimed(arguments: Arguments) -> Iterator[None]:
    """Keeps the output folder for this run while a `with` block runs.

    The first process of a run locks it; the others share that. With `overwrite_output_dir: true`
    the run that is in it is moved beside it, whole, first.

    Raises:
        CheckpointError: if another run is at work in the folder, or it cannot be moved.
    """
    if arguments.training.output_dir is None or not keeps_folder(arguments):
        yield
        return
    folder = output_folder(arguments)
    lock = OutputLock(folder)
    moves = starts_anew(arguments) and holds_run(folder)
    launch = launch_of(os.environ)
    lock.acquire("" if moves else launch)
    try:
        if moves:
            lock = _moved_aside(folder, lock, launch)
        for path in sweep(folder):
            console.info(f"deleted {path.name}, which a run that was cut off left in {folder}")
        if not is_restart():
            forget_requests(folder)
        elif was_stopped(folder):  # its launcher takes the exit code for a failure
            raise Stopped(f"the run in {folder} was asked to stop, and is not started again")
        yield
    finally:
        lock.release()


def keeps_folder(arguments: Arguments) -> bool:
    """Whether this process looks after its machine's output folder for all ranks."""
    world = distributed_environment()
    on_each = arguments.training.save_on_each_node and world.local_rank == 0
    return world.rank == 0 or on_each


def output_folder(arguments: Arguments) -> Path:
    """`output_dir`, which the arguments have."""
    return Path(str(arguments.training.output_dir)).expanduser()


def starts_anew(arguments: Arguments) -> bool:
    """Whether what is in the folder gives way to a new run.

    Not when a launcher starts the ranks of one run again: what is there is that run's own.
    """
    training = arguments.training
    if not (training.overwrite_output_dir and training.do_train):
        return False
    before = last_holder(output_folder(arguments)) if is_restart() else None
    return before is None or before.launch != launch_of(os.environ)


def holds_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return bool(list_checkpoints(folder)) or any((folder / name).exists() for name in MARKS)


def _moved_aside(folder: Path, lock: OutputLock, launch: str) -> OutputLock:
    place = folder.resolve()
    aside = free_name(place)
    try:
        place.rename(aside)
    except OSError as problem:
        raise CheckpointError(
            f"output_dir: {folder} cannot be moved to {aside} ({problem.strerror}), as "
            "overwrite_output_dir: true asks. Move or delete it, or name another folder."
        ) from problem
    ours = OutputLock(place)
    ours.acquire(launch)
    lock.release()
    (aside / FILE_NAME).unlink(missing_ok=True)
    console.info(f"overwrite_output_dir: the run that was in {folder} is now {aside}")
    return ours


def free_name(place: Path) -> Path:
    """A name beside a folder that says when it was moved away."""
    name = f"{place.name}.old-{datetime.now():%Y-%m-%d-%H%M%S}"
    aside = place.with_name(name)
    number = 1
    while aside.exists():
        number += 1
        aside = place.with_name(f"{name}-{number}")
    return aside
