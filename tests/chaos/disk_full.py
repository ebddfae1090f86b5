"""Lets the disk of a run fill up: the last good checkpoint stays valid, and the run says so.

Each trial is a run of ten steps that saves at each second one, on a file system of its own (a small
tmpfs; where none can be mounted, files may not grow beyond a size, which fails in the same places).
The disk fills up before a save, so that the check of free space finds it, or within one, after a
number of bytes drawn at random. In some trials room is made again after one failed save: then the
run goes on to its end. In the others it stops after three, with exit code 28; started again with
room it ends bit-equal to the run that nobody touched.

    python -m tests.chaos.disk_full --trials 10
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tests.chaos import trial

How = Literal["before", "within"]

LENGTH = {"max_steps": 10, "save_steps": 2, "save_total_limit": 2, "max_failed_saves": 3}

DISK_BYTES = 24 << 20

FIRST_FULL = 4
"""The step whose save is the first to find no room."""

FILLER = "filler"

LOG_BYTES = 16_384
"""What a run may always write: the limit of files is also one of its log."""


def fill_disk(folder: str, how: How, left: int, num_failures: int) -> None:
    """What a run's process does before it begins: it takes the room that its saves need.

    Args:
        folder: on the file system that fills up.
        how: whether the room is gone when a save begins, or when it has checked.
        left: bytes that stay.
        num_failures: saves that find no room; afterwards there is some again.
    """
    from luthier.checkpoints import saver as module
    from luthier.checkpoints.saver import CheckpointSaver

    filler = Path(folder) / FILLER
    failures = [0]
    save, check_space = CheckpointSaver.save, module.check_space

    def is_full(saver: CheckpointSaver) -> bool:
        return saver._trainer.state.global_step >= FIRST_FULL and failures[0] < num_failures

    def checked(place: Path, needed: int) -> None:
        check_space(place, needed)
        if how == "within" and is_full(saving[0]):
            take(filler, left)

    saving: list[CheckpointSaver] = []

    def full_save(saver: CheckpointSaver, progress: dict[str, Any]) -> Any:
        saving[:] = [saver]
        if how == "before" and is_full(saver):
            take(filler, left)
        try:
            published = save(saver, progress)
        finally:
            filler.unlink(missing_ok=True)
            lift_limit()
        failures[0] += published is None
        return published

    CheckpointSaver.save = full_save  # type: ignore[method-assign]
    module.check_space = checked


def take(filler: Path, left: int) -> None:
    """Fills the disk until so many bytes are left, or limits files to as many."""
    if os.path.ismount(filler.parent):
        free = shutil.disk_usage(filler.parent).free
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - left, 1))
    else:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = max(left, LOG_BYTES)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def lift_limit() -> None:
    """Lets files grow again."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mounts a tmpfs on a folder, where that is allowed; tells whether it was."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        is_mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", str(folder)], check=True)


class FullDisk:
    """A finished run, and runs on a disk that fills up."""

    def __init__(self, workshop: trial.Workshop, disk: Path) -> None:
        self._workshop, self._disk = workshop, disk
        self.straight = workshop.folder / "straight"
        trial.run_well(self._arguments(self.straight))

    def problems(self, how: How, left: int, num_failures: int) -> Iterator[str]:
        """What is wrong with a run that found no room; nothing should be."""
        from luthier.checkpoints.verify import newest_valid, verify

        folder = self._disk / "run"
        shutil.rmtree(folder, ignore_errors=True)
        (ended,) = trial.run(
            self._arguments(folder),
            prepare=partial(fill_disk, str(self._disk), how, left, num_failures),
        )
        said = ended.stderr
        expected = 28 if num_failures >= LENGTH["max_failed_saves"] else 0
        if ended.exit_code != expected:
            yield f"exit code {ended.exit_code}, expected {expected}:\n{said[-2000:]}"
            return
        if said.count("could not be written: ") != num_failures:
            yield f"{said.count('could not be written: ')} failures are told, not {num_failures}"
        if how == "before" and os.path.ismount(self._disk) and " are needed" not in said:
            yield "the numbers are not told"
        yield from (f"{path} is left" for path in folder.glob(".stage-*"))
        newest = newest_valid(folder)
        wanted = f"checkpoint-{FIRST_FULL - 2 if expected else 10}"
        if newest is None or newest.name != wanted:
            yield f"the newest good checkpoint is {newest}, expected {wanted}"
        for checkpoint in folder.glob("checkpoint-*"):
            yield from (f"{checkpoint.name}: {each}" for each in verify(checkpoint))
        if expected:
            trial.run_well(self._arguments(folder))
        yield from trial.differences(self.straight, folder)

    def _arguments(self, folder: Path, **more: object) -> dict[str, Any]:
        return self._workshop.arguments(folder, **(LENGTH | more))


def draw_trial(number: int, size: int) -> tuple[How, int, int]:
    """How the disk of a trial fills up, what is left of it, and how many saves fail.

    Args:
        number: of the trial.
        size: bytes of a checkpoint.
    """
    chooser = random.Random(number)
    how: How = "before" if number % 3 == 0 else "within"
    return how, chooser.randrange(size // 2), 3 if number % 2 else 1


def main(words: list[str] | None = None) -> int:
    """Tries all, and says how many of them went well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10)
    options = parser.parse_args(words)
    begun, num_well = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workshop = trial.stand_alone(folder)
        with small_disk(folder / "disk") as is_mounted:
            print(f"on a tmpfs of {DISK_BYTES >> 20} MiB" if is_mounted else "by a limit of files")
            full = FullDisk(workshop, folder / "disk")
            sizes = [file.stat().st_size for file in (full.straight / "checkpoint-10").iterdir()]
            size = sum(sizes) if is_mounted else max(sizes)
            for number in range(options.trials):
                how, left, failures = draw_trial(number, size)
                told = list(full.problems(how, left, failures))
                num_well += not told
                label = f"full {how} a save, {left:,} bytes left, {failures} saves fail"
                print(f"{'ok' if not told else 'WRONG'}  {label}", *told, sep="\n      ")
    print(f"{num_well} of {options.trials} went well, {time.monotonic() - begun:.0f} s")
    return int(num_well < options.trials)


if __name__ == "__main__":
    sys.exit(main())
