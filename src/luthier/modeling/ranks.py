"""What the processes of a run tell each other; alone, each function answers for the one."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def num_ranks() -> int:
    """Processes of this run's group; 1 where there is none."""
    return dist.get_world_size() if _is_joined() else 1


def rank() -> int:
    """This process's number in the group; 0 where there is none."""
    return dist.get_rank() if _is_joined() else 0


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, by rank; all ranks must call it."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def agree_any(flag: bool) -> bool:
    """Whether the flag is set on any rank; all ranks must call it."""
    return any(gather_objects(flag))


def agree_all(flag: bool) -> bool:
    """Whether the flag is set on every rank; all ranks must call it."""
    return all(gather_objects(flag))


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
