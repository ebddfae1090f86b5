"""What a run that is started again still has to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeAlias

from transformers import EarlyStoppingCallback, TrainerState

from luthier import console
from luthier.checkpoints.publish import finished_model
from luthier.checkpoints.verify import STATE, saved_entry_of
from luthier.training.callbacks.requests import owes_evaluation
from luthier.training.loop import Trainer
from luthier.training.state import find_best_again

RESULTS = "train_results.json"

Left: TypeAlias = Literal["nothing", "model", "steps"]
"""Nothing; only the model has to be written, since the run was cut off behind its last step; or
steps have to be made."""


def what_is_left(trainer: Trainer, checkpoint: Path) -> Left:
    """What a run has to do that goes on from a checkpoint; said, when it is not to train."""
    folder = Path(trainer.args.output_dir)
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    max_steps = trainer.schedule(len(trainer.get_train_dataloader())).max_steps
    saved = (state.stateful_callbacks or {}).get(EarlyStoppingCallback.__name__)
    counter = saved["attributes"]["early_stopping_patience_counter"] if saved else 0
    is_patience_used_up = any(
        counter >= callback.early_stopping_patience
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, EarlyStoppingCallback)
    )
    # the last file that training leaves; who was cut off before it does the end again
    is_told = (folder / RESULTS).is_file()
    model = finished_model(folder) if is_told else None
    if model is not None and (
        (model.end == "steps" and model.step >= max_steps)
        or (model.end == "patience" and is_patience_used_up)
    ):
        why = "all" if model.end == "steps" else "early_stopping_steps ended it after"
        console.info(
            f"nothing to train: {folder} is finished, {why} {model.step:,} steps are made. "
            "Set overwrite_output_dir: true for a new run, or raise num_train_epochs."
        )
        return "nothing"
    is_over = state.global_step >= max_steps or is_patience_used_up
    if is_over and not owes_evaluation(state):
        console.info(
            f"{checkpoint} has made all {state.global_step:,} steps; only the model is not yet in "
            f"{folder}, and is written now"
        )
        return "model"
    return "steps"


def take_up_end(trainer: Trainer, checkpoint: Path) -> dict[str, float]:
    """Puts a trainer where it was behind its last step, at the best weights if asked."""
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
    find_best_again(trainer.state, Path(trainer.args.output_dir))
    source = checkpoint
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        source = Path(trainer.state.best_model_checkpoint)
    trainer.strategy.load_weights(trainer, source)
    total = saved_entry_of(json.loads((checkpoint / STATE).read_bytes())).get("total_loss")
    steps = max(trainer.state.global_step, 1)
    return {} if total is None else {"train_loss": total / steps, "epoch": trainer.state.epoch or 0}


def take_up_finished(trainer: Trainer) -> dict[str, float]:
    """Puts a trainer where the run in its folder has ended, with the weights and its numbers."""
    folder = Path(trainer.args.output_dir)
    if (folder / STATE).is_file():
        trainer.state = TrainerState.load_from_json(str(folder / STATE))
    trainer.strategy.load_weights(trainer, folder)
    metrics: dict[str, float] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return metrics
