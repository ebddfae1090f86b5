"""The checkpoints of a run: which one it goes on from, and what that one was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.arguments.record import Arguments

STATE_ENTRY = "LuthierTrainer"
"""Where trainer_state.json keeps, among the callbacks' states, what the library forgets."""

FIXED_BY_CHECKPOINT = (
    "finetuning_type",
    "optim",
    "lora_rank",
    "lora_target",
    "additional_target",
    "use_dora",
    "freeze_trainable_layers",
    "freeze_trainable_modules",
    "freeze_extra_modules",
    "streaming",
)
"""Settings that say which weights learn, what the optimizer keeps of each, and how rows are met."""


def find_checkpoint(arguments: Arguments) -> Path | None:
    """The checkpoint a training run goes on from.

    The one that `resume_from_checkpoint` names; else the newest in `output_dir`, unless
    `overwrite_output_dir` asks for a new start; None when there is none.
    """
    training = arguments.training
    if training.resume_from_checkpoint is not None:
        return Path(training.resume_from_checkpoint).expanduser()
    if training.overwrite_output_dir:
        return None
    return last_checkpoint(Path(str(training.output_dir)).expanduser())


def last_checkpoint(folder: Path) -> Path | None:
    """The `checkpoint-N` with the largest N in a folder that says at which step it was made."""
    numbered = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal()
        and (path / "trainer_state.json").is_file()
    ]
    return max(numbered)[1] if numbered else None


def settings_of_checkpoint(arguments: Arguments) -> dict[str, Any]:
    """The settings that a run and the checkpoint it goes on from must share, as JSON holds them."""
    values = arguments.flat()
    chosen = {name: values[name] for name in FIXED_BY_CHECKPOINT}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in chosen.items()}


def saved_entry(checkpoint: Path) -> dict[str, Any]:
    """What our trainer kept in a checkpoint beside the library's state; empty when it kept nothing.

    Args:
        checkpoint: a folder with a `trainer_state.json`.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    entry: dict[str, Any] = state.get("stateful_callbacks", {}).get(STATE_ENTRY, {})
    attributes: dict[str, Any] = entry.get("attributes", {})
    return attributes
