"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier import console
from luthier.arguments.record import Arguments
from luthier.checkpoints.aside import free_name, output_folder, starts_anew
from luthier.checkpoints.compatibility import (
    Changes,
    compare,
    compare_files,
    compare_settings,
)
from luthier.checkpoints.folders import (
    holds_states,
    list_checkpoints,
    size_of,
    step_of,
)
from luthier.checkpoints.identity import Identity, settings_of
from luthier.checkpoints.manifest import FILE_NAME, read_manifest
from luthier.checkpoints.verify import Problem, verify_once
from luthier.errors import ArgumentsError, CheckpointError, NoValidCheckpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGE = 1 << 30
"""Bytes of a checkpoint whose check takes long enough to be told."""

NUM_NAMED = 5
"""Damaged files of one checkpoint that a line names."""

_said: set[str] = set()


def choose_checkpoint(arguments: Arguments) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means, as good as it was written.

    Args:
        arguments: of a run that trains.

    Returns:
        None for a new run.

    Raises:
        NoValidCheckpoint: if the one that is named, or all there are, are damaged.
        CheckpointError: if one is asked for and there is none, or none and there are some.
    """
    asked = arguments.training.resume_from_checkpoint
    if asked not in ("auto", "true", "false"):
        return _named(Path(asked).expanduser())
    folder = output_folder(arguments)
    if starts_anew(arguments):
        return None
    present = list_checkpoints(folder)
    if asked == "false" and present:
        raise CheckpointError(
            f"resume_from_checkpoint: false, but {folder} holds checkpoints of a run, and another "
            "would mix with it. Set overwrite_output_dir: true, which moves that run aside, or "
            "name another folder."
        )
    if asked == "true" and not present:
        raise CheckpointError(
            f"resume_from_checkpoint: true, but {folder} holds no checkpoint. Leave it out to "
            "begin where there is none, or name the folder of the run."
        )
    bad: dict[Path, list[Problem]] = {}
    for checkpoint in reversed(present):
        problems = _check(checkpoint)
        if not problems:
            for other, why in bad.items():
                _warn(f"{other} is left out: {_listed(why)}")
            return checkpoint
        bad[checkpoint] = problems
    if bad:
        raise NoValidCheckpoint(
            "\n".join(
                [
                    f"no checkpoint in {folder} is as it was written:",
                    *(f"    {path.name}: {_listed(why)}" for path, why in bad.items()),
                    "  Name a good one elsewhere by resume_from_checkpoint, or set "
                    "overwrite_output_dir: true for a new run.",
                ]
            )
        )
    return None


def check_settings(arguments: Arguments, checkpoint: Path) -> str | None:
    """What the arguments alone say against going on from a checkpoint."""
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return None
    changes = compare_settings(manifest, settings_of(arguments))
    return changes.problem(checkpoint, are_allowed=arguments.training.resume_allow_changes)


def go_on(arguments: Arguments, now: Identity) -> tuple[Path | None, Identity]:
    """The checkpoint that all ranks go on from, and what the run then is.

    The first rank looks, and all hear of what it found; every rank must call it. The data, the
    batch, the processes and the settings are those of the checkpoint, or allowed to be others.

    Args:
        arguments: of a run that trains.
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
            found = (choose_checkpoint(arguments), now.run_id)
        except CheckpointError as problem:
            found = problem
    found = gather_objects(found)[0]
    if isinstance(found, CheckpointError):
        raise found
    checkpoint, run_id = found
    if checkpoint is None:
        return None, replace(now, run_id=run_id)
    absent = [seen for seen in gather_objects(_missing_here(checkpoint)) if seen]
    if absent:
        raise CheckpointError(
            f"{checkpoint} is there for the first process, but {absent[0]}. Put the run's folder "
            "where all machines see it, or copy the checkpoint to each."
        )
    manifest = read_manifest(checkpoint)
    if manifest is None:
        _warn(
            f"{checkpoint} has no {FILE_NAME}, so another program wrote it. Its files look whole; "
            "whether they are as they were written cannot be seen."
        )
        _agree_to(compare_files(checkpoint, now), arguments, checkpoint)
    else:
        _agree_to(compare(manifest, now), arguments, checkpoint)
        run_id = manifest.run_id
    if rank() == 0:
        _leave_later_ones(arguments, checkpoint)
    return checkpoint, replace(now, run_id=run_id)


def announce(checkpoint: Path) -> None:
    """Says where a run goes on, and what it has to do without."""
    console.info(f"going on from {checkpoint}")
    if not holds_states(checkpoint):
        console.warn(
            f"{checkpoint} holds no optimizer (save_only_model: true): its moments and the "
            "learning rate's schedule begin anew, so the run is not the one it was. Set "
            "overwrite_output_dir: true to train from the start."
        )


def _leave_later_ones(arguments: Arguments, checkpoint: Path | None) -> None:
    """Renames the later checkpoints of a run that is told to go on from before them.

    They are of a past that this run does not have; the next start would take the newest of them.
    """
    folder = output_folder(arguments)
    is_named = arguments.training.resume_from_checkpoint not in ("auto", "true", "false")
    if checkpoint is None or not is_named or checkpoint.resolve().parent != folder.resolve():
        return
    for other in list_checkpoints(folder):
        if (step_of(other) or 0) > (step_of(checkpoint) or 0):
            aside = free_name(other)
            other.rename(aside)
            console.info(f"{other} is later than {checkpoint.name}, and is now {aside.name}")


def _agree_to(changes: Changes, arguments: Arguments, checkpoint: Path) -> None:
    are_allowed = arguments.training.resume_allow_changes
    problem = changes.problem(checkpoint, are_allowed=are_allowed)
    if problem is not None:
        raise ArgumentsError([problem])
    for line in changes.notes:
        console.info(line)
    for line in changes.learned:
        console.warn(f"resume_allow_changes: {line}")


def _named(checkpoint: Path) -> Path:
    problems = _check(checkpoint)
    if problems:
        raise NoValidCheckpoint(
            f"resume_from_checkpoint: {checkpoint} is not as it was written: {_listed(problems)}. "
            "No other is taken in its place. Name another one, or leave the line out to go on "
            "from the newest good one in output_dir."
        )
    return checkpoint


def _check(checkpoint: Path) -> list[Problem]:
    if checkpoint.is_dir() and (size := size_of(checkpoint)) > LARGE:
        _say(f"checking {checkpoint} ({console.gibibytes(size)})")
    return verify_once(checkpoint)


def _missing_here(checkpoint: Path) -> str:
    import socket

    if (checkpoint / "trainer_state.json").is_file():
        return ""
    return f"{socket.gethostname()} does not see it"


def _listed(problems: Sequence[Problem]) -> str:
    named = "; ".join(map(str, problems[:NUM_NAMED]))
    rest = len(problems) - NUM_NAMED
    return f"{named}; and {rest} more" if rest > 0 else named


def _warn(text: str) -> None:
    if text not in _said:
        _said.add(text)
        console.warn(text)


def _say(text: str) -> None:
    if text not in _said:
        _said.add(text)
        console.info(text)
