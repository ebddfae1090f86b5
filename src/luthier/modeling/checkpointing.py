"""Gradient checkpointing: activations computed again, where something below them learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier import console
from luthier.modeling.quirks.checkpointing_name import enable_checkpointing


def checkpoint_activations(model: PreTrainedModel, *, use_reentrant: bool, **options: Any) -> None:
    """Switches gradient checkpointing on, from the first layer that learns.

    Layers below it take no part in the backward pass, so they keep nothing and need not be
    computed twice. The reentrant form only sees a layer whose input requires a gradient; the
    output of what stands before the first learning layer is made to.

    Args:
        model: with its adapters and with `requires_grad` set, for they say what learns.
        use_reentrant: torch's older form; both give the same gradients.
        options: further keyword arguments of `torch.utils.checkpoint.checkpoint`.
    """
    if not model.supports_gradient_checkpointing:
        console.warn(f"{type(model).__name__} knows no gradient checkpointing; it stays off")
        return
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
    console.info(f"gradient checkpointing: {said}{', reentrant' if use_reentrant else ''}")


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
