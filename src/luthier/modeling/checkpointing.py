"""Gradient checkpointing: activations computed again, where memory asks for it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier import console
from luthier.arguments.choices import OPTIMIZERS
from luthier.arguments.record import Arguments
from luthier.modeling.device import free_memory
from luthier.modeling.dtypes import Autocast
from luthier.modeling.memory import measure_activations, training_bytes
from luthier.modeling.quirks.checkpointing_name import enable_checkpointing

USABLE = {"cpu": 0.5, "cuda": 0.85}
"""The share of the free memory that an estimate may fill.

glibc's heap has been seen to grow to twice what is kept in it, torch's own of a GPU hardly at all.
"""


def choose_checkpointing(
    model: Any,
    arguments: Arguments,
    *,
    num_tokens: int,
    longest: int,
    is_padded: bool,
    autocast: Autocast,
) -> None:
    """Switches gradient checkpointing on where it is asked for, or where memory needs it.

    `auto` keeps all activations when the estimate fits on every rank.

    Args:
        model: ready to train, with `requires_grad` set and everything replaced that will be, on
            the device of the run.
        arguments: of the run.
        num_tokens: of the largest micro-batch.
        longest: tokens of the longest sequence.
        is_padded: whether micro-batches are rectangles, not trees.
        autocast: makes the context that the run computes in.
    """
    asked = arguments.training.gradient_checkpointing
    reason = ""
    if asked == "auto":
        device = next(model.parameters()).device
        activations = measure_activations(model, autocast, is_padded=is_padded)
        needed = training_bytes(
            model,
            activations,
            num_tokens,
            longest,
            OPTIMIZERS.get(arguments.training.optim),
            keeps_float32=arguments.training.deepspeed is not None,
        )
        needed, free = _worst(needed, free_memory(device), device)
        asked = free is None or needed > USABLE[device.type] * free
        if free is None:
            reason = f"; nothing says how much memory {device.type} has"
        else:
            reason = f"about {needed / 2**30:.1f} of {free / 2**30:.1f} GiB"
            reason = f"; without it {reason} would be needed" if asked else f", {reason} needed"
    if not asked:
        if reason:
            console.info(f"gradient checkpointing: off{reason}")
        return
    options = dict(arguments.training.gradient_checkpointing_kwargs or {})
    use_reentrant = bool(options.pop("use_reentrant", arguments.model.use_reentrant_gc))
    bare = extract_model_from_parallel(model)
    base = bare.get_base_model() if isinstance(bare, PeftModel) else bare
    said = checkpoint_activations(base, use_reentrant=use_reentrant, **options)
    if said:
        console.info(f"gradient checkpointing: {said}{reason}")


def checkpoint_activations(model: PreTrainedModel, *, use_reentrant: bool, **options: Any) -> str:
    """Switches gradient checkpointing on, from the first layer that learns.

    Layers below it take no part in the backward pass, so they keep nothing and need not be
    computed twice. The reentrant form only sees a layer whose input requires a gradient; the
    output of what stands before the first learning layer is made to.

    Args:
        model: with its adapters and with `requires_grad` set, for they say what learns.
        use_reentrant: torch's older form; both give the same gradients.
        options: further keyword arguments of `torch.utils.checkpoint.checkpoint`.

    Returns:
        How many layers, in words; empty when the model knows none of it, which is told.
    """
    if not model.supports_gradient_checkpointing:
        console.warn(f"{type(model).__name__} knows no gradient checkpointing; it stays off")
        return ""
    settings = {"use_reentrant": use_reentrant, **options}
    enable_checkpointing(model, settings)
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    first = next((i for i, (_, layer) in enumerate(layers) if _learns(layer)), None)
    if first is None or _learns(model.get_input_embeddings()):
        first = 0
    for _, layer in layers[:first]:
        layer.gradient_checkpointing = False
    if use_reentrant and layers:
        _before(model, layers, first).register_forward_hook(_require_grad)
    said = f"{len(layers) - first} of {len(layers)} layers" if layers else "on"
    return f"{said}{', reentrant' if use_reentrant else ''}"


def recomputes_activations(model: nn.Module) -> bool:
    """Whether any layer has gradient checkpointing switched on."""
    return any(
        isinstance(each, GradientCheckpointingLayer) and each.gradient_checkpointing
        for each in model.modules()
    )


def _worst(needed: int, free: int | None, device: torch.device) -> tuple[int, int | None]:
    """The most needed and the least free of all ranks, so that all of them choose alike."""
    if free is None or not (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):
        return needed, free
    both = torch.tensor([-needed, free], device=device)
    torch.distributed.all_reduce(both, op=torch.distributed.ReduceOp.MIN)
    least = both.tolist()
    return -least[0], least[1]


def _learns(module: Any) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _before(
    model: PreTrainedModel, layers: list[tuple[str, GradientCheckpointingLayer]], first: int
) -> Any:
    if first > 0:
        parent, previous = (layers[i][0].rpartition(".")[0] for i in (first, first - 1))
        if parent == previous:
            return layers[first - 1][1]
    return model.get_input_embeddings()


def _require_grad(module: nn.Module, inputs: Any, output: Any) -> None:
    hidden = output[0] if isinstance(output, tuple) else output
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_(True)
