"""settings that schedulers, optimizers and other libraries get as they are: what each takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from luthier.arguments.choices import OPTIMIZERS
from luthier.arguments.knob import Above, AtLeastZero, Below, Count, Share
from luthier.arguments.record import Arguments
from luthier.arguments.wording import expectation, members
from luthier.errors import suggest

Words: TypeAlias = Mapping[str, Any]
"""The names of one thing's settings -> the type of each."""

_Shape: TypeAlias = Literal["linear", "cosine", "1-sqrt"]

_LEAST_RATE: Words = {"num_cycles": Above, "min_lr": AtLeastZero, "min_lr_rate": Share}
_PLATEAU: Words = {
    "mode": Literal["min", "max"],
    "factor": Below,
    "patience": Count,
    "threshold": AtLeastZero,
    "threshold_mode": Literal["rel", "abs"],
    "cooldown": Count,
    "min_lr": AtLeastZero | list[float],
    "eps": AtLeastZero,
}
SCHEDULERS: Mapping[str, Words] = {
    "cosine": {"num_cycles": Above},
    "cosine_with_restarts": {"num_cycles": Annotated[int, Field(ge=1)]},
    "polynomial": {"lr_end": AtLeastZero, "power": Above},
    "inverse_sqrt": {"timescale": Annotated[int, Field(ge=1)]},
    "reduce_lr_on_plateau": _PLATEAU,
    "greedy": {
        **_PLATEAU,
        "warmup": Count,
        "max_lr": AtLeastZero | list[float],
        "verbose": bool,
        "smooth": bool,
        "window_size": Annotated[int, Field(ge=1)],
        "reset_start": Count,
    },
    "cosine_with_min_lr": _LEAST_RATE,
    "cosine_warmup_with_min_lr": {**_LEAST_RATE, "warmup_lr_rate": Share},
    "warmup_stable_decay": {
        "num_stable_steps": Count,
        "num_decay_steps": Count,
        "warmup_type": _Shape,
        "decay_type": _Shape,
        "min_lr_ratio": Share,
        "num_cycles": Above,
    },
}
"""`lr_scheduler_kwargs` of each `lr_scheduler_type`; the others take none."""

CHECKPOINTING: Words = {
    "use_reentrant": bool,
    "preserve_rng_state": bool,
    "determinism_check": Literal["default", "none"],
    "debug": bool,
    "early_stop": bool,
}
"""`gradient_checkpointing_kwargs`, those of torch.utils.checkpoint."""

ACCELERATOR: Words = {
    "split_batches": bool,
    "dispatch_batches": bool | None,
    "even_batches": bool,
    "use_seedable_sampler": bool,
    "non_blocking": bool,
    "gradient_accumulation_kwargs": dict[str, Any] | None,
    "use_configured_state": bool,
}
"""`accelerator_config`, that of transformers."""


def find_misfits(arguments: Arguments) -> Iterator[str]:
    """What is wrong in the settings that are handed on: names that nobody takes, values of none."""
    training = arguments.training
    scheduler, optimizer = training.lr_scheduler_type, training.optim
    told = training.lr_scheduler_kwargs or {}
    yield from _misfits("lr_scheduler_kwargs", scheduler, SCHEDULERS.get(scheduler, {}), told)
    yield from _together(arguments)
    pairs = [part.partition("=") for part in (training.optim_args or "").split(",") if part.strip()]
    if any(not equals or "=" in value for _, equals, value in pairs):
        yield f"optim_args: expected name=value,name=value; found {training.optim_args!r}."
    else:
        given = {name.strip(): value.strip() for name, _, value in pairs}
        taken = OPTIMIZERS.get(optimizer).settings
        yield from _misfits("optim_args", optimizer, taken, given)
    checkpointing = training.gradient_checkpointing_kwargs or {}
    name = "gradient_checkpointing_kwargs"
    yield from _misfits(name, "gradient checkpointing", CHECKPOINTING, checkpointing)
    is_reentrant = checkpointing.get("use_reentrant", arguments.model.use_reentrant_gc)
    if checkpointing.get("debug") and is_reentrant:
        yield f"{name}: debug needs use_reentrant: false beside it."
    given = training.accelerator_config or {}
    yield from _misfits("accelerator_config", "accelerate", ACCELERATOR, given)


def _together(arguments: Arguments) -> Iterator[str]:
    """What a scheduler's settings have to be to each other and to the learning rate."""
    training = arguments.training
    scheduler, told = training.lr_scheduler_type, training.lr_scheduler_kwargs or {}
    ends = [name for name in ("min_lr", "min_lr_rate") if told.get(name) is not None]
    if scheduler in ("cosine_with_min_lr", "cosine_warmup_with_min_lr") and len(ends) != 1:
        found = "has both" if ends else "has neither"
        yield (
            f"lr_scheduler_type: {scheduler} needs one of min_lr and min_lr_rate in "
            f"lr_scheduler_kwargs, and {found}. Write lr_scheduler_kwargs: {{min_lr_rate: 0.1}}, a "
            "share of learning_rate, or min_lr, the least rate itself."
        )
    end = told.get("lr_end", 1e-7)
    if scheduler == "polynomial" and isinstance(end, float) and end >= training.learning_rate:
        yield (
            f"lr_scheduler_type: polynomial falls to lr_end, {end:g}; expected less than "
            f"learning_rate, {training.learning_rate:g}. Say it in lr_scheduler_kwargs."
        )


def _misfits(argument: str, taker: str, words: Words, given: Mapping[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        if name not in words:
            hint = suggest(name, words) if words else " It takes none; leave it out."
            yield f"{argument}: {taker} takes no {name!r}.{hint}"
            continue
        try:
            is_number = isinstance(value, bool) and bool not in members(words[name])
            TypeAdapter(words[name]).validate_python("a switch" if is_number else value)
        except ValidationError:
            expected = expectation(FieldInfo.from_annotation(words[name]))
            yield f"{argument}: {name} is {value!r}; expected {expected}."
