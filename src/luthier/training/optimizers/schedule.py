"""The learning rate's schedule of a run, with what depends on the number of steps filled in."""

from __future__ import annotations

import torch
from transformers import TrainingArguments as LibraryArguments
from transformers.optimization import get_scheduler

from luthier import console
from luthier.arguments.record import Arguments
from luthier.arguments.resolve import resolve_warmup_steps


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
