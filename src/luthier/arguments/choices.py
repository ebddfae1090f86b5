"""Values of knobs that are things of their own: optimizers, schedules, methods; what each needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from luthier.arguments.knob import Above, AtLeastZero, Below, Count, Share
from luthier.registry import Registry


@dataclass(frozen=True)
class Optimizer:
    """What stands behind a value of `optim`: a file of `training/optimizers/`, or a line of one."""

    make: Callable[[list[dict[str, Any]], Any], Any] | None = None
    """(parameter groups, the run's `TrainingArguments`) -> a torch optimizer; each group has
    `params` and `weight_decay`, perhaps `lr`. None where transformers makes it."""
    needs: str = ""  # the package it comes from; empty where torch or transformers have it
    numbers: float = 2.0  # that it keeps of each trained one, as wide as it is
    packed_bytes: float | None = None
    """That it keeps of each trained number, where its states are packed."""
    is_sharded: bool = True
    """Whether it works on parts of weights as on whole ones, as ZeRO and FSDP have it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The names that `optim_args` may set -> the type of each."""

    def state_bytes(self, parameter: Any) -> float:
        """What it keeps of a trained tensor."""
        if self.packed_bytes is not None:
            return self.packed_bytes * float(parameter.numel())
        return self.numbers * float(parameter.nbytes)


@dataclass(frozen=True)
class Schedule:
    """What stands behind a value of `lr_scheduler_type`, by transformers' name."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """The names that `lr_scheduler_kwargs` may set -> the type of each."""
    looks_at_end: bool = True  # whether it depends on the number of all steps
    acts_on_evaluations: bool = False
    """Whether it follows a metric; then its own state holds the learning rate and all of its
    settings."""


_Least: TypeAlias = Annotated[int, Field(ge=1)]
_Shape: TypeAlias = Literal["linear", "cosine", "1-sqrt"]

_LEAST_RATE = {"num_cycles": Above, "min_lr": AtLeastZero, "min_lr_rate": Share}
_PLATEAU = {
    "mode": Literal["min", "max"],
    "factor": Below,
    "patience": Count,
    "threshold": AtLeastZero,
    "threshold_mode": Literal["rel", "abs"],
    "cooldown": Count,
    "min_lr": AtLeastZero | list[float],
    "eps": AtLeastZero,
}
_GREEDY = _PLATEAU | {
    "warmup": Count,
    "max_lr": AtLeastZero | list[float],
    "verbose": bool,
    "smooth": bool,
    "window_size": _Least,
    "reset_start": Count,
}
_STABLE = {
    "num_stable_steps": Count,
    "num_decay_steps": Count,
    "warmup_type": _Shape,
    "decay_type": _Shape,
    "min_lr_ratio": Share,
    "num_cycles": Above,
}
SCHEDULES = {
    "linear": Schedule(),
    "cosine": Schedule({"num_cycles": Above}),
    "cosine_with_restarts": Schedule({"num_cycles": _Least}),
    "polynomial": Schedule({"lr_end": AtLeastZero, "power": Above}),
    "constant": Schedule(looks_at_end=False),
    "constant_with_warmup": Schedule(looks_at_end=False),
    "inverse_sqrt": Schedule({"timescale": _Least}, looks_at_end=False),
    "reduce_lr_on_plateau": Schedule(_PLATEAU, looks_at_end=False, acts_on_evaluations=True),
    "cosine_with_min_lr": Schedule(_LEAST_RATE),
    "cosine_warmup_with_min_lr": Schedule(_LEAST_RATE | {"warmup_lr_rate": Share}),
    "warmup_stable_decay": Schedule(_STABLE),
    "greedy": Schedule(_GREEDY, looks_at_end=False, acts_on_evaluations=True),
}


@dataclass(frozen=True)
class Adapter:
    """What stands behind a value of `finetuning_type`: a file of `modeling/adapters/`.

    It is asked before anything is loaded, so what it needs is imported in its functions.
    """

    prepare: Callable[..., Any]
    """(model, arguments, `is_trainable`, the `checkpoint` that a run goes on from) -> the model, or
    the peft model around it, whose parameters have `requires_grad` exactly where they learn. It
    raises a ModelError when the arguments do not fit the model."""
    finish: Callable[[Any, Any, Path], None] | None = None
    """(model, arguments, folder), after the first rank has written a trained model there."""
    needs: str = ""  # the package it comes from
    keeps_apart: bool = False
    """Whether what learns lies beside the model's own weights and in a file of its own: it can be
    gone on with and merged (`adapter_name_or_path`)."""
    trains_all: bool = False  # whether every weight learns
    is_sharded: bool = True  # whether it marks parts of weights as it does whole ones


@dataclass(frozen=True)
class PairLoss:
    """What stands behind a value of `pref_loss`; see `losses/pairs.py`."""

    take: Callable[[Any, Any], Any]
    """(answers of P pairs, the knobs of `finetuning`) -> (P,) losses."""
    needs_reference: bool = True  # whether it holds the model against its reference
    smooths: bool = False  # whether `dpo_label_smoothing` is part of it
    needs_smoothing: bool = False  # whether that must not be 0
    diverges: bool = False  # whether `f_divergence_type` is part of it
    couples: bool = False  # whether the loss of a pair depends on the other pairs of its step
    averages_step: bool = False  # whether it needs the mean length of the chosen answers of a step


STAGES: Registry[Any] = Registry("stage", "luthier.stages")
ADAPTERS: Registry[Adapter] = Registry("finetuning_type", "luthier.modeling.adapters")
OPTIMIZERS: Registry[Optimizer] = Registry("optim", "luthier.training.optimizers")
PAIR_LOSSES: Registry[PairLoss] = Registry("pref_loss", "luthier.losses")

ABSENT_STAGES = ("ppo",)
"""Stages of LLaMA-Factory; those that a file stands for are here all the same."""

if TYPE_CHECKING:
    Stage: TypeAlias = str
    Method: TypeAlias = str
    Optim: TypeAlias = str
    Scheduler: TypeAlias = str
else:
    Stage = Literal[tuple(dict.fromkeys((*STAGES.names(), *ABSENT_STAGES)))]
    Method = Literal[tuple(ADAPTERS.names())]
    Optim = Literal[tuple(OPTIMIZERS.names())]
    Scheduler = Literal[tuple(SCHEDULES)]
