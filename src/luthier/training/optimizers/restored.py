"""A restored optimizer, and what of it the run's own arguments say."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch.optim.lr_scheduler import LambdaLR

Group: TypeAlias = dict[str, Any]

NAMES = ("initial_lr", "weight_decay", "betas", "eps")
"""Of a group of weights: what arguments say, and no optimizer changes by itself."""


def settings_of_groups(optimizer: Any) -> list[Group]:
    """What the arguments say of each group, of an optimizer that has its scheduler."""
    return [
        {name: _plain(group[name]) for name in NAMES if name in group}
        for group in optimizer.param_groups
    ]


def put_in(optimizer: Any, scheduler: Any, groups: list[Group]) -> str:
    """Gives an optimizer that was restored the settings of this run, at the step that it is at.

    The library restores those of the run before with the moments, and the schedule's learning rates
    likewise. A schedule that is a function of the step follows this run's at once. `groups` are
    from `settings_of_groups` before. What is other than it was, is returned as a line.
    """
    changed: dict[str, None] = {}  # a set in order: groups mostly change alike
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        for name, value in settings.items():
            before = _plain(group.get(name, value))
            if before != value:
                changed[f"{name}: {before} then, {value} now"] = None
                group[name] = value
    if isinstance(scheduler, LambdaLR):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        rates = [
            rate * share(scheduler.last_epoch)
            for rate, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        scheduler._last_lr = rates
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    return ", ".join(changed)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
