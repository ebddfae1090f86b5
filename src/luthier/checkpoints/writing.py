"""The files of a checkpoint, and those of the model at the end, as the library writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers.trainer_callback import ExportableState

from luthier.checkpoints.folders import checkpoint_folder
from luthier.checkpoints.subject import Subject
from luthier.checkpoints.verify import STATE


def write_checkpoint(trainer: Subject, stage: Path, written: Callable[[], None]) -> None:
    """What transformers' `_save_checkpoint` writes, to a stage; every rank its own part.

    Its trainer_state.json names checkpoints by where they will be published.

    Args:
        trainer: whose moment it is.
        stage: a folder that is there.
        written: is called when this rank has written some files whole.
    """
    folder = str(stage)
    if not trainer.args.save_only_model:  # the largest first: it is hashed in the meantime
        trainer._save_optimizer_and_scheduler(folder)
        written()
        trainer._save_scaler(folder)
        trainer._save_rng_state(folder)
    trainer.save_model_of_checkpoint(folder)
    written()
    if trainer.args.should_save:
        keep_callback_states(trainer)
        trainer.state.save_to_json(str(stage / STATE))


def name_best(trainer: Subject, output_dir: Path) -> None:
    """Notes where the best model is, as soon as a checkpoint of its step is there or being made."""
    state = trainer.state
    best = state.best_global_step
    if best is None:
        return
    folder = checkpoint_folder(output_dir, best)
    if best == state.global_step or folder.is_dir():
        state.best_model_checkpoint = str(folder)


def keep_callback_states(trainer: Subject) -> None:
    """Puts the counters of callbacks into the state that is saved."""
    states = trainer.state.stateful_callbacks
    assert states is not None
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(callback, ExportableState):
            name, state = type(callback).__name__, callback.state()
            if isinstance(states.get(name), list):
                states[name].append(state)
            else:
                states[name] = state
