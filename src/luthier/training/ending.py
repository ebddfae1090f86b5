"""What a run that is started again still has to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeAlias

from transformers import EarlyStoppingCallback, TrainerState

from luthier import console
from luthier.checkpoints.final import finished_model
from luthier.checkpoints.subject import Subject
from luthier.checkpoints.verify import STATE, saved_entry
from luthier.training.callbacks.requests import owes_evaluation

RESULTS = "train_results.json"

Left: TypeAlias = Literal["nothing", "model", "steps"]
"""Nothing; only the model has to be written, since the run was cut off behind its last step; or
steps have to be made."""


def what_is_left(trainer: Subject, checkpoint: Path) -> Left:
    """What a run has to do that goes on from a checkpoint; said, when it is not to train."""
    folder = Path(trainer.args.output_dir)
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    *_, max_steps = trainer.set_initial_training_values(
        trainer.args, trainer.get_train_dataloader()
    )
    # the last file that training leaves; who was cut off before it does the end again
    is_told = (folder / RESULTS).is_file()
    model = finished_model(folder) if is_told else None
    if model is not None and (
        (model.end == "steps" and model.step >= max_steps)
        or (model.end == "patience" and _is_patience_used_up(trainer, state))
    ):
        why = "all" if model.end == "steps" else "early_stopping_steps ended it after"
        console.info(
            f"nothing to train: {folder} is finished, {why} {model.step:,} steps are made. "
            "Set overwrite_output_dir: true for a new run, or raise num_train_epochs."
        )
        return "nothing"
    is_over = state.global_step >= max_steps or _is_patience_used_up(trainer, state)
    if is_over and not owes_evaluation(state):
        console.info(
            f"{checkpoint} has made all {state.global_step:,} steps; only the model is not yet in "
            f"{folder}, and is written now"
        )
        return "model"
    return "steps"


def why_over(trainer: Subject) -> str:
    """Why training ended, in the words of `Manifest.end`."""
    if trainer.state.global_step >= trainer.state.max_steps:
        return "steps"
    used_up = any(
        callback.early_stopping_patience_counter >= callback.early_stopping_patience
        for callback in _stoppers(trainer)
    )
    return "patience" if used_up else "stopped"


def take_up_end(trainer: Subject, checkpoint: Path) -> dict[str, float]:
    """Puts a trainer where it was behind its last step, with the best weights if those are asked.

    Returns:
        What is known of the whole training.
    """
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
    find_best_again(trainer, trainer.state.best_model_checkpoint)
    source = checkpoint
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        source = Path(trainer.state.best_model_checkpoint)
    load_weights(trainer, source)
    entry = saved_entry(checkpoint)
    total = entry.get("total_loss")
    steps = max(trainer.state.global_step, 1)
    return {} if total is None else {"train_loss": total / steps, "epoch": trainer.state.epoch or 0}


def take_up_finished(trainer: Subject) -> dict[str, float]:
    """Puts a trainer where the run in its folder has ended, with the weights there.

    Returns:
        The numbers of its training.
    """
    folder = Path(trainer.args.output_dir)
    if (folder / STATE).is_file():
        trainer.state = TrainerState.load_from_json(str(folder / STATE))
    load_weights(trainer, folder)
    metrics: dict[str, float] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return metrics


def load_weights(trainer: Subject, folder: Path) -> None:
    """Reads weights in the way of the run's strategy, without the optimizer's moments."""
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        trainer._load_from_checkpoint(str(folder))
        return
    state = trainer.state
    loader = trainer.get_train_dataloader()
    checkpoint = str(folder) if trainer.is_deepspeed_enabled else None
    trainer._prepare_for_training(state.max_steps, loader, checkpoint)
    if trainer.is_fsdp_enabled:
        trainer._load_from_checkpoint(str(folder), trainer.model_wrapped)
    trainer.state = state


def find_best_again(trainer: Subject, named: str | None) -> None:
    """Names the best checkpoint where it is now, if the run's folder was moved or copied.

    Args:
        trainer: whose state was restored.
        named: where the checkpoint that it was restored from says it is.
    """
    if named is None:
        return
    state, own = trainer.state, Path(trainer.args.output_dir) / Path(named).name
    if own.is_dir():
        state.best_model_checkpoint = str(own)
    elif not Path(named).is_dir():
        state.best_model_checkpoint = state.best_global_step = state.best_metric = None
        console.warn(
            f"the best checkpoint, {named}, is not there any more, and neither is {own}: the best "
            "of those to come is taken instead, or the last one"
        )


def _is_patience_used_up(trainer: Subject, state: TrainerState) -> bool:
    saved = (state.stateful_callbacks or {}).get(EarlyStoppingCallback.__name__)
    counter = saved["attributes"]["early_stopping_patience_counter"] if saved else 0
    return any(counter >= callback.early_stopping_patience for callback in _stoppers(trainer))


def _stoppers(trainer: Subject) -> list[EarlyStoppingCallback]:
    callbacks = trainer.callback_handler.callbacks
    return [each for each in callbacks if isinstance(each, EarlyStoppingCallback)]
