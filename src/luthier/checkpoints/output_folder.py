"""The folder of a run: what is in it, and what a run may do there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from luthier import console
from luthier.arguments.record import Arguments, facts
from luthier.checkpoints.compatibility import Changes, compare, compare_files, compare_settings
from luthier.checkpoints.control_files import forget_requests, was_stopped
from luthier.checkpoints.files import holds_states, list_checkpoints, size_of, step_of, sweep
from luthier.checkpoints.fingerprint import settings_of
from luthier.checkpoints.lock import FILE_NAME, OutputLock, holder, last_holder, launch_of
from luthier.checkpoints.manifest import FILE_NAME as MANIFEST
from luthier.checkpoints.manifest import Manifest, read_manifest
from luthier.checkpoints.verify import STATE, Problem, verify_once
from luthier.errors import ArgumentsError, CheckpointError, NoValidCheckpoint, Stopped
from luthier.processes.environment import distributed_environment, is_restart

WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")

MARKS = (*WEIGHTS, "run.json", "trainer_log.jsonl", "trainer_state.json")
"""Files that only a run leaves in a folder."""

LARGE = 1 << 30
"""Bytes of a checkpoint whose check takes long enough to be told."""

NUM_NAMED = 5
"""Damaged files of one checkpoint that a line names."""


class OutputFolder:
    """What is in the `output_dir` of a run, and what that run may do there.

    Before anything slow is loaded it says what is wrong (`problems`, `checkpoint_problems`); then
    it is `locked`; and the run goes on from what `resume` finds.

    Args:
        arguments: of the run.

    Attributes:
        path: the folder.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments, self._training = arguments, arguments.training
        self._has_name = self._training.output_dir is not None
        self._resumes_named = self._training.resume_from_checkpoint not in ("auto", "true", "false")
        self.path = Path(str(self._training.output_dir)).expanduser()

    @property
    def is_kept_here(self) -> bool:
        """Whether this process looks after its machine's folder for all ranks."""
        here = distributed_environment()
        on_each = self._training.save_on_each_node and here.local_rank == 0
        return here.rank == 0 or on_each

    def problems(self) -> Iterator[str]:
        """What speaks against writing to it, but for its checkpoints."""
        training, folder = self._training, self.path
        if not self._has_name:
            return
        if folder.exists() and not folder.is_dir():
            yield f"output_dir: {folder} is a file. Name a folder; it is made when absent."
            return
        if training.do_train and self._resumes_named:
            named = Path(training.resume_from_checkpoint).expanduser()
            if not named.is_dir() or not any(named.iterdir()):
                yield (
                    f"resume_from_checkpoint: {named} is no checkpoint. Name a checkpoint-N "
                    "folder, or leave the line out to go on from the newest good one in output_dir."
                )
        if not folder.is_dir() or not self.is_kept_here:
            return
        if other := holder(folder):
            yield (
                f"output_dir: {folder} is in use by {other}. Name another folder, or end that run "
                "(`luthier stop` saves it first)."
            )
        elif self._gives_way():
            if self._holds_run():
                yield from self._read_inside()
        elif training.do_train and not self._resumes_named and not list_checkpoints(folder):
            found = [name for name in WEIGHTS if (folder / name).exists()]
            if found:
                yield (
                    f"output_dir: {folder} holds a finished model ({found[0]}) and no checkpoint "
                    "to go on from. Name another folder, or set overwrite_output_dir: true."
                )

    def checkpoint_problems(self) -> Iterator[str]:
        """What speaks against the checkpoint to go on from; CheckpointError if none is whole.

        Only the process that looks after the folder reads it; the others hear of it later.
        """
        if not (self._has_name and self._training.do_train and self.is_kept_here):
            return
        checkpoint = self.choose_checkpoint()
        manifest = None if checkpoint is None else read_manifest(checkpoint)
        if checkpoint is not None and manifest is not None:
            changes = compare_settings(manifest, settings_of(self._arguments))
            problem = changes.problem(checkpoint, are_allowed=self._training.resume_allow_changes)
            if problem is not None:
                yield problem

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps the folder for this run while a `with` block runs.

        The first process of a run locks it; the others share that. With `overwrite_output_dir:
        true` the run that is in it becomes a backup beside it, whole, first.

        Raises:
            CheckpointError: if another run is at work in the folder, or it cannot be moved.
        """
        if not (self._has_name and self.is_kept_here):
            yield
            return
        folder = self.path
        lock = OutputLock(folder)
        moves = self._gives_way() and self._holds_run()
        lock.acquire("" if moves else launch_of(os.environ))
        try:
            if moves:
                lock = self._back_up(lock)
            for path in sweep(folder):
                console.info(f"deleted {path.name}, which a run that was cut off left in {folder}")
            if not is_restart():
                forget_requests(folder)
            elif was_stopped(folder):  # its launcher takes the exit code for a failure
                raise Stopped(f"the run in {folder} was asked to stop, and is not started again")
            yield
        finally:
            lock.release()

    def choose_checkpoint(self) -> Path | None:
        """The checkpoint that `resume_from_checkpoint` means, as good as it was written.

        Returns:
            None for a new run.

        Raises:
            NoValidCheckpoint: if the one that is named, or all there are, are damaged.
            CheckpointError: if one is asked for and there is none, or none and there are some.
        """
        asked, folder = self._training.resume_from_checkpoint, self.path
        if self._resumes_named:
            checkpoint = Path(asked).expanduser()
            if problems := _check(checkpoint):
                raise NoValidCheckpoint(
                    f"resume_from_checkpoint: {checkpoint} is not as it was written: "
                    f"{_listed(problems)}. No other is taken in its place. Name another one, or "
                    "leave the line out to go on from the newest good one in output_dir."
                )
            return checkpoint
        if self._gives_way():
            return None
        present = list_checkpoints(folder)
        if asked == "false" and present:
            raise CheckpointError(
                f"resume_from_checkpoint: false, but {folder} holds checkpoints of a run, and "
                "another would mix with it. Set overwrite_output_dir: true, which moves that run "
                "aside, or name another folder."
            )
        if asked == "true" and not present:
            raise CheckpointError(
                f"resume_from_checkpoint: true, but {folder} holds no checkpoint. Leave it out to "
                "begin where there is none, or name the folder of the run."
            )
        bad: dict[Path, str] = {}
        for checkpoint in reversed(present):
            problems = _check(checkpoint)
            if not problems:
                for other, why in bad.items():
                    console.once(f"{other} is left out: {why}", console.warn)
                return checkpoint
            bad[checkpoint] = _listed(problems)
        if bad:
            raise NoValidCheckpoint(
                "\n".join(
                    [
                        f"no checkpoint in {folder} is as it was written:",
                        *(f"    {path.name}: {why}" for path, why in bad.items()),
                        "  Name a good one elsewhere by resume_from_checkpoint, or set "
                        "overwrite_output_dir: true for a new run.",
                    ]
                )
            )
        return None

    def resume(self, now: Manifest) -> tuple[Path | None, Manifest]:
        """The checkpoint that all ranks go on from, and what the run then is.

        The first rank looks, and all hear of what it found; every rank must call it. The data, the
        batch, the processes and the settings are those of the checkpoint, or allowed to be others.
        Later checkpoints of a run that is told to go on from before them are renamed: they are of a
        past that this run does not have, and the next start would take the newest of them.

        Args:
            now: the run as it would begin.

        Returns:
            None and `now`, with the run's number of the first rank, where it begins.

        Raises:
            CheckpointError: see `choose_checkpoint`.
            ArgumentsError: if what is learned would change and nobody has allowed it.
        """
        from luthier.processes.ranks import gather_objects, rank

        found: tuple[Path | None, str] | CheckpointError = (None, now.run_id)
        if rank() == 0:
            try:
                found = (self.choose_checkpoint(), now.run_id)
            except CheckpointError as problem:
                found = problem
        found = gather_objects(found)[0]
        if isinstance(found, CheckpointError):
            raise found
        checkpoint, run_id = found
        if checkpoint is None:
            return None, replace(now, run_id=run_id)
        is_seen = (checkpoint / STATE).is_file()
        absent = [host for host in gather_objects("" if is_seen else socket.gethostname()) if host]
        if absent:
            raise CheckpointError(
                f"{checkpoint} is there for the first process, but {absent[0]} does not see it. "
                "Put the run's folder where all machines see it, or copy the checkpoint to each."
            )
        manifest = read_manifest(checkpoint)
        if manifest is None:
            console.once(
                f"{checkpoint} has no {MANIFEST}, so another program wrote it. Its files look "
                "whole; whether they are as they were written cannot be seen.",
                console.warn,
            )
            self._agree_to(compare_files(checkpoint, now), checkpoint)
        else:
            self._agree_to(compare(manifest, now), checkpoint)
            run_id = manifest.run_id
        is_ours = checkpoint.resolve().parent == self.path.resolve()
        if rank() == 0 and self._resumes_named and is_ours:
            for other in list_checkpoints(self.path):
                if (step_of(other) or 0) > (step_of(checkpoint) or 0):
                    backup = other.rename(_backup_name(other))
                    console.info(
                        f"{other} is later than {checkpoint.name}, and is now {backup.name}"
                    )
        return checkpoint, replace(now, run_id=run_id)

    def _agree_to(self, changes: Changes, checkpoint: Path) -> None:
        are_allowed = self._training.resume_allow_changes
        problem = changes.problem(checkpoint, are_allowed=are_allowed)
        if problem is not None:
            raise ArgumentsError([problem])
        for line in changes.notes:
            console.info(line)
        for line in changes.learned:
            console.warn(f"resume_allow_changes: {line}")

    def _gives_way(self) -> bool:
        """Whether what is in the folder gives way to a new run.

        Not when a launcher starts the ranks of one run again: what is there is that run's own.
        """
        if not (self._training.overwrite_output_dir and self._training.do_train):
            return False
        before = last_holder(self.path) if is_restart() else None
        return before is None or before.launch != launch_of(os.environ)

    def _holds_run(self) -> bool:
        has_marks = any((self.path / name).exists() for name in MARKS)
        return has_marks or bool(list_checkpoints(self.path))

    def _read_inside(self) -> Iterator[str]:
        """What the run reads and would no longer find once the folder was moved aside."""
        folder, place = self.path, self.path.resolve()
        if Path.cwd().resolve().is_relative_to(place):
            yield (
                f"overwrite_output_dir: {folder} would be moved aside, and it is the working "
                "directory. Start from elsewhere, or name another output_dir."
            )
        values = self._arguments.flat()
        for name in (name for name, known in facts().items() if known.reads):
            value = values[name]
            for each in value if isinstance(value, list | tuple) else [value]:
                path = Path(each).expanduser() if isinstance(each, str) and each else None
                if path is not None and path.exists() and path.resolve().is_relative_to(place):
                    yield (
                        f"overwrite_output_dir: {folder} would be moved aside, and {name} reads "
                        f"{path} in it. Name another output_dir, or move that out of it."
                    )

    def _back_up(self, lock: OutputLock) -> OutputLock:
        place = self.path.resolve()
        backup = _backup_name(place)
        try:
            place.rename(backup)
        except OSError as problem:
            raise CheckpointError(
                f"output_dir: {self.path} cannot be moved to {backup} ({problem.strerror}), as "
                "overwrite_output_dir: true asks. Move or delete it, or name another folder."
            ) from problem
        ours = OutputLock(place)
        ours.acquire(launch_of(os.environ))
        lock.release()
        (backup / FILE_NAME).unlink(missing_ok=True)
        console.info(f"overwrite_output_dir: the run that was in {self.path} is now {backup}")
        return ours


def announce(checkpoint: Path) -> None:
    """Says where a run goes on, and what it has to do without."""
    console.info(f"going on from {checkpoint}")
    if not holds_states(checkpoint):
        console.warn(
            f"{checkpoint} holds no optimizer (save_only_model: true): its moments and the "
            "learning rate's schedule begin anew, so the run is not the one it was. Set "
            "overwrite_output_dir: true to train from the start."
        )


def _backup_name(place: Path) -> Path:
    name = f"{place.name}.old-{datetime.now():%Y-%m-%d-%H%M%S}"
    backup, number = place.with_name(name), 1
    while backup.exists():
        number += 1
        backup = place.with_name(f"{name}-{number}")
    return backup


def _check(checkpoint: Path) -> list[Problem]:
    if checkpoint.is_dir() and (size := size_of(checkpoint)) > LARGE:
        console.once(f"checking {checkpoint} ({console.gibibytes(size)})")
    return verify_once(checkpoint)


def _listed(problems: Sequence[Problem]) -> str:
    named = "; ".join(map(str, problems[:NUM_NAMED]))
    rest = len(problems) - NUM_NAMED
    return f"{named}; and {rest} more" if rest > 0 else named
