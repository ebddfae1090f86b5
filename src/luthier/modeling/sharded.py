"""Weights that ZeRO stage 3 holds in parts: how large they are, and how they become whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

OF_THE_HOOKS = ("pre_bwd_fn", "post_bwd_fn")
"""What DeepSpeed leaves at a module whose weights it gathers."""


def is_sharded(parameter: Any) -> bool:
    """Whether DeepSpeed holds a parameter in parts, be it whole at the moment or not."""
    return hasattr(parameter, "ds_id")  # DeepSpeed's own test


def has_shards(model: nn.Module) -> bool:
    """Whether any weight of a model is held in parts."""
    return any(is_sharded(each) for each in model.parameters())


def full_numel(parameter: Any) -> int:
    """How many numbers a parameter has on all ranks together."""
    return int(parameter.ds_numel if is_sharded(parameter) else parameter.numel())


def held_part(parameter: Any) -> torch.Tensor:
    """What this rank holds of a parameter: all of it, or its part as a flat tensor."""
    part: torch.Tensor = parameter.ds_tensor if is_sharded(parameter) else parameter
    return part


def full_shape(parameter: Any) -> torch.Size:
    """The shape of a parameter when it is whole."""
    shape: torch.Size = parameter.ds_shape if is_sharded(parameter) else parameter.shape
    return shape


@contextmanager
def whole(
    parameters: Iterable[nn.Parameter], *, changes: bool = False
) -> Iterator[list[nn.Parameter]]:
    """The parameters, whole while the context is open; every rank has to open it.

    With `changes` what the first rank writes inside is kept.
    """
    chosen = list(parameters)
    sharded = [each for each in chosen if is_sharded(each)]
    if not sharded:
        yield chosen
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if changes else None):
        yield chosen


@contextmanager
def gathering(model: nn.Module) -> Iterator[None]:
    """While open, modules have whole weights whenever they compute, as under DeepSpeed's engine.

    For looks at a model before its engine is made: forwards and `torch.autograd.grad`. Nothing
    happens where no weight is held in parts, or the engine is there. What is not yet sharded (an
    adapter beside sharded weights) is from here on. Every rank has to do the same inside.

    Args:
        model: bare or a peft model.
    """
    if not has_shards(model) or _is_hooked(model):
        yield
        return
    from deepspeed.runtime.zero import parameter_offload

    own = [(module, module._parameters) for module in model.modules()]
    stack = parameter_offload.FWD_MODULE_STACK
    depth = len(stack)
    hooks = parameter_offload.DeepSpeedZeRoOffload(
        model,
        timers=None,
        ds_config=None,
        overlap_comm=False,
        prefetch_bucket_size=0,
        max_reuse_distance=0,
        max_live_parameters=0,
        param_persistence_threshold=0,
    )
    for module in model.modules():
        module._parameters._in_forward = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        hooks.partition_all_parameters()
        hooks.destroy()
        del stack[depth:]
        for module, parameters in own:
            module._parameters = parameters
            for name in OF_THE_HOOKS:
                vars(module).pop(name, None)


def _is_hooked(model: nn.Module) -> bool:
    """Whether modules gather their weights already, for an engine or in an outer context."""
    return any(name in vars(module) for module in model.modules() for name in OF_THE_HOOKS)
