"""What the processes of a run tell each other; alone, each function answers for the one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from luthier.errors import ModelError

T = TypeVar("T")


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


def share_fate(compute: Callable[[], T]) -> T:
    """What this rank computes, if every rank can; all ranks must call it.

    Without it the ranks that could would wait for the one that has ended, and say that a connection
    was closed. Who fails raises its own error, the others a ModelError with it.
    """
    try:
        value = compute()
    except Exception as problem:
        gather_objects(f"{type(problem).__name__}: {problem}")
        raise
    for other, said in enumerate(gather_objects(None)):
        if said is not None:
            raise ModelError(f"process {other} could not go on: {said}")
    return value


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
