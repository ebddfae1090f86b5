"""A run's optimizer, with its groups of weights, and the schedule of its learning rate."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers import TrainingArguments as LibraryArguments
from transformers.optimization import get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from luthier import console
from luthier.arguments.choices import OPTIMIZERS
from luthier.arguments.record import Arguments
from luthier.arguments.resolve import resolve_warmup_steps

NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Parts of the names of weights that are not pulled to zero, as transformers chooses them."""


def make_optimizer(
    model: nn.Module, arguments: Arguments, library: LibraryArguments
) -> torch.optim.Optimizer:
    """The optimizer of a run, by the entry of `optim` or by transformers' public factory.

    Biases and norms do not decay; with LoRA+ the B matrices learn faster, see `loraplus_groups`.
    The model is as it is trained, sharded, if it is; `library` has `warmup_steps` as a number of
    steps (those of schedule-free optimizers are their own).
    """
    training, finetuning = arguments.training, arguments.finetuning
    decaying = set(get_parameter_names(model, [nn.LayerNorm], list(NO_DECAY)))
    if finetuning.loraplus_lr_ratio is not None:
        groups = loraplus_groups(
            model,
            training.learning_rate,
            training.weight_decay,
            finetuning.loraplus_lr_ratio,
            finetuning.loraplus_lr_embedding,
            decaying,
        )
    else:
        trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
        groups = [
            {
                "params": [each for name, each in trained if (name in decaying) == decays],
                "weight_decay": training.weight_decay if decays else 0.0,
            }
            for decays in (True, False)
        ]
    entry = OPTIMIZERS.get(training.optim)
    optimizer: torch.optim.Optimizer
    if entry.make is not None:
        optimizer = entry.make(groups, training)
        return optimizer
    kind, options = Trainer.get_optimizer_cls_and_kwargs(library, model)
    # some take the whole model
    optimizer = kind(options.pop("model", groups), **options)
    if entry.needs == "bitsandbytes" and entry.packed_bytes is not None:
        import bitsandbytes

        # few rows of embeddings learn in a step, for which 8 bits are too coarse
        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def loraplus_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    ratio: float,
    lr_embedding: float,
    decay_names: Collection[str],
) -> list[dict[str, Any]]:
    """Groups of LoRA+: B matrices learn faster than A matrices (Hayou et al. 2024).

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


def make_schedule(
    optimizer: torch.optim.Optimizer, num_steps: int, arguments: Arguments, args: LibraryArguments
) -> torch.optim.lr_scheduler.LRScheduler:
    """Makes the schedule by transformers' public factory; what was filled in is said."""
    args.warmup_steps, note = resolve_warmup_steps(arguments.training, num_steps)
    if note:
        console.info(note)
    if args.lr_scheduler_type == "warmup_stable_decay":
        options = dict(args.lr_scheduler_kwargs or {})
        if "num_decay_steps" not in options:
            remaining = num_steps - int(args.warmup_steps)
            options["num_decay_steps"] = remaining - remaining // 3
            stable = options.get("num_stable_steps", remaining // 3)
            console.info(
                f"lr_scheduler_kwargs: {stable} stable steps and {options['num_decay_steps']} "
                "of decay (two thirds of the steps after warm-up)"
            )
        args.lr_scheduler_kwargs = options
    schedule: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    return schedule
