"""What a run goes on with beside its weights and its optimizer: random numbers, callbacks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import CallbackHandler, ExportableState, TrainerControl
from transformers.trainer_pt_utils import safe_globals
from transformers.training_args import ParallelMode

from luthier import console


def save_random(args: TrainingArguments, folder: str) -> None:
    """Writes where this rank's generators of random numbers stand."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.get_rng_state(),
    }
    if torch.accelerator.is_available():
        device = torch.get_device_module()
        is_distributed = args.parallel_mode == ParallelMode.DISTRIBUTED
        take = device.random.get_rng_state_all if is_distributed else device.random.get_rng_state
        states[kind_of_device()] = take()
    torch.save(states, Path(folder) / name_of_random(args))


def load_random(args: TrainingArguments, folder: str) -> None:
    """Has the generators go on from where a checkpoint was made; not there, nothing happens."""
    file = Path(folder) / name_of_random(args)
    if not file.is_file():  # of another number of ranks
        return
    with safe_globals():
        states = torch.load(file, weights_only=True)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if torch.accelerator.is_available() and kind_of_device() in states:
        device, state = torch.get_device_module(), states[kind_of_device()]
        is_distributed = args.parallel_mode == ParallelMode.DISTRIBUTED
        put = device.random.set_rng_state_all if is_distributed else device.random.set_rng_state
        try:
            put(state)
        except (RuntimeError, IndexError) as problem:
            console.warn(
                f"the random numbers of {kind_of_device()} cannot go on as they were: {problem}. "
                "The run goes on with others."
            )


def kind_of_device() -> str:
    """The accelerator's name in a file of random states."""
    device = torch.accelerator.current_accelerator()
    return "cpu" if device is None else device.type


def name_of_random(args: TrainingArguments) -> str:
    """The file of this rank's random states in a checkpoint."""
    rank = f"_{args.process_index}" if args.world_size > 1 else ""
    return f"rng_state{rank}.pth"


def stateful(handler: CallbackHandler, control: TrainerControl) -> list[Any]:
    """The callbacks whose states are saved, and the flags."""
    return [each for each in [*handler.callbacks, control] if isinstance(each, ExportableState)]


def make_callbacks_anew(
    state: TrainerState, handler: CallbackHandler, control: TrainerControl
) -> TrainerControl:
    """Replaces callbacks by those of a checkpoint (`restore_callback_states_from_checkpoint`).

    The flags are those of the checkpoint where it has some.
    """
    for name, saved in (state.stateful_callbacks or {}).items():
        kept = saved if isinstance(saved, list) else [saved]
        if name == type(control).__name__:
            control = type(control).from_state(kept[0])
        own = [each for each in handler.callbacks if type(each).__name__ == name]
        for callback, each in zip(own, kept, strict=False):
            handler.remove_callback(callback)
            handler.add_callback(type(callback).from_state(each))
    return control


def restore_counters(state: TrainerState, handler: CallbackHandler) -> None:
    """Gives callbacks the counters that they had in a checkpoint.

    The library saves them at most, and begins anew: patience with a run that gets no better would
    be full again.
    """
    for callback in handler.callbacks:
        saved = (state.stateful_callbacks or {}).get(type(callback).__name__)
        if isinstance(callback, ExportableState) and isinstance(saved, dict):
            for name, value in saved["attributes"].items():
                setattr(callback, name, value)


def find_best_again(state: TrainerState, output_dir: Path) -> None:
    """Names the best checkpoint where it is now, if the run's folder was moved or copied."""
    named = state.best_model_checkpoint
    if named is None:
        return
    own = output_dir / Path(named).name
    if own.is_dir():
        state.best_model_checkpoint = str(own)
    elif not Path(named).is_dir():
        state.best_model_checkpoint = state.best_global_step = state.best_metric = None
        console.warn(
            f"the best checkpoint, {named}, is not there any more, and neither is {own}: the best "
            "of those to come is taken instead, or the last one"
        )


def why_over(state: TrainerState, callbacks: Sequence[TrainerCallback]) -> str:
    """Why training ended, in the words of `Manifest.end`."""
    if state.global_step >= state.max_steps:
        return "steps"
    used_up = any(
        each.early_stopping_patience_counter >= each.early_stopping_patience
        for each in callbacks
        if isinstance(each, EarlyStoppingCallback)
    )
    return "patience" if used_up else "stopped"
