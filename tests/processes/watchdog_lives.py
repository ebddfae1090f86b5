"""ranks without a model: they meet, exchange numbers step by step, and end as a test asks for"""

from __future__ import annotations

import ctypes
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from luthier.processes.watchdog import Watchdog

DDP_TIMEOUT_S = 10.0

READY = "half way"
"""What a rank writes when it is well under way."""


def live(kind: str, num_steps: int = 10_000) -> str:
    """Steps of 50 ms until the end, with the watch of a run."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=DDP_TIMEOUT_S))
    rank = dist.get_rank()
    watchdog = Watchdog()
    watchdog.start(
        dist.distributed_c10d._get_default_store(),
        rank,
        dist.get_world_size(),
        DDP_TIMEOUT_S,
        "run",
        holds_store=rank == 0,
    )
    problem: BaseException | None = None
    try:
        _work(kind, rank, num_steps, watchdog)
    except Exception as raised:
        problem = raised
        raise
    finally:
        watchdog.leave(problem)
    return "well"


def _work(kind: str, rank: int, num_steps: int, watchdog: Watchdog) -> None:
    for step in range(1, num_steps + 1):
        watchdog.own.mark(step, "training")
        if step == 20:
            print(READY, file=sys.stderr, flush=True)
            if rank == (0 if "keeps the store" in kind else 1):
                _meet_fate(kind.partition(",")[0])
        dist.all_reduce(torch.ones(1000))
        time.sleep(0.05)


def _meet_fate(kind: str) -> None:
    match kind:
        case "raise":
            raise ValueError("row 17 is no row; my password is at http://me:secret@example.org")
        case "hang":
            while True:
                time.sleep(100)
        case "slow":
            time.sleep(6)
        case "deaf for a while":
            ctypes.PyDLL(None).sleep(6)  # unlike CDLL, this keeps every other thread waiting
        case "deaf":
            ctypes.PyDLL(None).sleep(1000)
