"""A launcher's restart -> a meeting place without the words of the ranks before.

torchrun's own store lives through its restarts, and torch's groups look up in it under the same
names where the ranks of this start can be reached: they find the addresses of the last start
(github.com/pytorch/pytorch/issues/135712; torch 2.13 still does). Remove this when a bare
`init_process_group` survives `torchrun --max-restarts`.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from luthier.processes.launched import World

POLL_S = 0.02

_kept: list[Any] = []
"""The store that rank 0 keeps for the others as long as it lives."""


def meet_anew(world: World, timeout: timedelta) -> None:
    """Has the ranks of a restart meet in a new store, which rank 0 keeps.

    On a first start, and under launchers that keep no store, nothing changes.

    Args:
        world: what the launcher said.
        timeout: how long ranks wait for each other.
    """
    if world.world_size == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, None, False, timeout, wait_for_workers=False)
    new_port = agree(store, world.rank, world.world_size, timeout, lambda: _open(host, timeout))
    if new_port is not None:
        os.environ["MASTER_PORT"] = str(new_port)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def agree(
    store: Any, rank: int, world_size: int, timeout: timedelta, open_store: Callable[[], int]
) -> int | None:
    """What rank 0 has decided for this start; every rank calls it.

    Nobody but rank 0 can know which start this is: launchers of several machines count for
    themselves. So each rank asks under a name that was never used, and goes by an answer to that
    name only; rank 0 goes on when it has been thanked under the name of this start.

    Args:
        store: with whatever earlier starts have left in it.
        rank: this one.
        world_size: how many there are.
        timeout: how long ranks wait for each other.
        open_store: opens a new store; its port.

    Returns:
        The port of the new store; None on the first start.

    Raises:
        TimeoutError: if not all ranks come.
    """
    end = time.monotonic() + timeout.total_seconds()
    if rank > 0:
        name = uuid.uuid4().hex
        store.set(f"luthier/asks/{rank}", name)
        while not store.check([f"luthier/answer/{name}"]):
            _rest(end, "rank 0 has not come")
        start, port = store.get(f"luthier/answer/{name}").decode().split()
        store.set(f"luthier/thanks/{start}/{rank}", "")
        return int(port) or None
    is_first = store.add("luthier/starts", 1) == 1
    new_port = 0 if is_first else open_store()
    start = uuid.uuid4().hex
    waiting = set(range(1, world_size))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"luthier/thanks/{start}/{other}"]):
                waiting.discard(other)
            elif store.check([f"luthier/asks/{other}"]):
                name = store.get(f"luthier/asks/{other}").decode()  # perhaps of an earlier start
                store.set(f"luthier/answer/{name}", f"{start} {new_port}")
        if waiting:
            _rest(end, f"ranks {', '.join(map(str, sorted(waiting)))} have not come")
    return new_port or None


def _open(host: str, timeout: timedelta) -> int:
    store = dist.TCPStore(host, 0, None, True, timeout, wait_for_workers=False, multi_tenant=True)
    _kept.append(store)
    return int(store.port)


def _rest(end: float, problem: str) -> None:
    if time.monotonic() > end:
        raise TimeoutError(f"the ranks of this run do not meet: {problem}")
    time.sleep(POLL_S)
