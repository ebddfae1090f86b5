"""LoRA+: the B matrices of LoRA learn faster than the A matrices (Hayou et al. 2024)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn


def loraplus_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    ratio: float,
    lr_embedding: float,
    decay_names: Collection[str],
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, each with its own rate and weight decay.

    A matrices and modules trained whole learn with the rate of the run; B matrices, and vectors
    (biases, norms), with `ratio` times it; LoRA on embeddings with its own rate.

    Args:
        model: with `requires_grad` set.
        learning_rate: of the run.
        weight_decay: of the run.
        ratio: how many times faster B learns (`loraplus_lr_ratio`).
        lr_embedding: the rate of LoRA's B on embeddings (`loraplus_lr_embedding`).
        decay_names: the names of parameters that decay; vectors outside of it do not.

    Returns:
        Groups in the order A, B, B without decay, embeddings; empty ones are left out.
    """
    fast = learning_rate * ratio
    groups: dict[str, dict[str, Any]] = {
        "a": {"params": [], "lr": learning_rate, "weight_decay": weight_decay},
        "b": {"params": [], "lr": fast, "weight_decay": weight_decay},
        "b_no_decay": {"params": [], "lr": fast, "weight_decay": 0.0},
        "embedding": {"params": [], "lr": lr_embedding, "weight_decay": weight_decay},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_fast = "lora_B" in name or parameter.ndim == 1
            kind = "a"
            if "lora_embedding_B" in name:
                kind = "embedding"
            elif is_fast:
                kind = "b" if name in decay_names else "b_no_decay"
            groups[kind]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]
