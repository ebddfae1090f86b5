"""What the output folder says against a run, before anything slow is imported or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.arguments.record import Arguments, facts
from luthier.checkpoints.aside import (
    holds_run,
    keeps_folder,
    output_folder,
    starts_anew,
)
from luthier.checkpoints.folders import list_checkpoints
from luthier.checkpoints.lock import holder
from luthier.checkpoints.resume import check_settings, choose_checkpoint

OUTPUT_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


def find_problems(arguments: Arguments) -> Iterator[str]:
    """What speaks against writing to `output_dir`, but for its checkpoints."""
    training = arguments.training
    if training.output_dir is None:
        return
    folder = output_folder(arguments)
    if folder.exists() and not folder.is_dir():
        yield f"output_dir: {folder} is a file. Name a folder; it is made when absent."
        return
    if training.do_train and training.resume_from_checkpoint not in ("auto", "true", "false"):
        named = Path(training.resume_from_checkpoint).expanduser()
        if not named.is_dir() or not any(named.iterdir()):
            yield (
                f"resume_from_checkpoint: {named} is no checkpoint. Name a checkpoint-N folder, or "
                "leave the line out to go on from the newest good one in output_dir."
            )
    if not folder.is_dir() or not keeps_folder(arguments):
        return
    other = holder(folder)
    if other is not None:
        yield (
            f"output_dir: {folder} is in use by {other}. Name another folder, or end that run "
            "(`luthier stop` saves it first)."
        )
    elif starts_anew(arguments):
        if holds_run(folder):
            yield from _kept_inside(arguments, folder)
    elif training.do_train and not list_checkpoints(folder):
        found = [name for name in OUTPUT_WEIGHTS if (folder / name).exists()]
        if found and training.resume_from_checkpoint in ("auto", "true", "false"):
            yield (
                f"output_dir: {folder} holds a finished model ({found[0]}) and no checkpoint to "
                "go on from. Name another folder, or set overwrite_output_dir: true."
            )


def find_problems_of_checkpoints(arguments: Arguments) -> Iterator[str]:
    """What speaks against the checkpoint that a run would go on from.

    Only the process that looks after the folder reads it; the others hear of it later.

    Raises:
        CheckpointError: if there is none that is as it was written.
    """
    if arguments.training.output_dir is None or not arguments.training.do_train:
        return
    if not keeps_folder(arguments):
        return
    checkpoint = choose_checkpoint(arguments)
    problem = None if checkpoint is None else check_settings(arguments, checkpoint)
    if problem is not None:
        yield problem


def _kept_inside(arguments: Arguments, folder: Path) -> Iterator[str]:
    """What the run reads and would no longer find once the folder was moved aside."""
    place = folder.resolve()
    if Path.cwd().resolve().is_relative_to(place):
        yield (
            f"overwrite_output_dir: {folder} would be moved aside, and it is the working "
            "directory. Start from elsewhere, or name another output_dir."
        )
    values = arguments.flat()
    for name in (name for name, known in facts().items() if known.reads):
        for path in _paths(values[name]):
            if path.exists() and path.resolve().is_relative_to(place):
                yield (
                    f"overwrite_output_dir: {folder} would be moved aside, and {name} reads {path} "
                    "in it. Name another output_dir, or move that out of it."
                )


def _paths(value: Any) -> list[Path]:
    values = value if isinstance(value, list | tuple) else [value]
    return [Path(each).expanduser() for each in values if isinstance(each, str) and each]
