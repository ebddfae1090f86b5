"""The group of a run's processes: joined once the data is there, left at the end."""

from __future__ import annotations

import atexit
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from luthier import console
from luthier.arguments.record import Arguments
from luthier.errors import ArgumentsError, LaunchError
from luthier.optional import need
from luthier.processes.environment import (
    DistributedEnvironment,
    count_cores,
    distributed_environment,
    environment_problems,
    has_accelerator,
    is_on_cpu,
)

if TYPE_CHECKING:
    from transformers import TrainingArguments as LibraryArguments

LEAVING_TIMEOUT_S = 10.0
"""How long a process tries to leave the group of a GPU in good order."""

POLL_S = 0.02

_kept: list[Any] = []
"""The store that rank 0 keeps for the others as long as it lives."""


def check_launch(arguments: Arguments) -> None:
    """Compares what the launcher said with the arguments and with this machine."""
    problems = list(environment_problems())
    if problems:
        raise ArgumentsError(problems)
    here, training = distributed_environment(), arguments.training
    if not here.is_launched and (training.nproc or 1) > 1:
        problems.append(
            f"nproc: {training.nproc} processes are asked for, and this run was started in one. "
            "`luthier train` starts as many as nproc says; from Python, start the script by "
            "torchrun."
        )
    if here.is_launched and is_on_cpu(arguments):
        if training.ddp_backend not in (None, "gloo"):
            problems.append(
                f"ddp_backend: {training.ddp_backend} needs devices that are not here; on a CPU "
                "processes talk by gloo. Leave it out."
            )
    elif here.is_launched and here.local_rank >= torch.accelerator.device_count():
        problems.append(
            f"the launcher started process {here.local_rank} on this machine (counted from 0), "
            f"and {torch.accelerator.device_count()} accelerators are visible. Start one process "
            "for each."
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    ours = training.precision
    if precision not in ("no", ours):
        problems.append(
            f"mixed_precision: accelerate's launcher says {precision}, and this run says "
            f"{'neither bf16 nor fp16' if ours == 'no' else ours}. Set {precision}: true in the "
            "run's arguments, or mixed_precision: 'no' for accelerate; the arguments decide."
        )
    if problems:
        raise ArgumentsError(problems)


def join_group(arguments: Arguments) -> DistributedEnvironment:
    """Joins the processes that a launcher has started; alone, nothing happens.

    On a CPU the group is made here, because transformers gives its own no time limit and
    accelerate gives DeepSpeed's none at all; on an accelerator they make it a moment later, when
    the library's arguments are made. `check_group` then compares.

    Args:
        arguments: resolved, so that `ddp_timeout` is one that ends; `check_launch` has seen them.
    """
    here, on_cpu = distributed_environment(), is_on_cpu(arguments)
    if "LOCAL_SIZE" in os.environ:  # deepspeed's launcher says it by this name
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])
    if not here.is_launched or dist.is_initialized():
        return here
    timeout = timedelta(seconds=arguments.training.ddp_timeout)
    _rendezvous_in_new_store(here, timeout)
    if not on_cpu:
        return here
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_local > 1 and "OMP_NUM_THREADS" not in os.environ:  # nobody has said how many
        threads = max(count_cores() // num_local, 1)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        console.info(f"OMP_NUM_THREADS = {threads} ({count_cores()} cores, {num_local} processes)")
    by_launcher = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if not (by_launcher or arguments.flat().get("deepspeed")):
        dist.init_process_group("gloo", timeout=timeout)
        return here
    # DeepSpeed's own collectives for CPUs are compiled at the first start (a minute), and they have
    # no time limit: ranks whose peer has died would wait for ever. Without them gloo is used
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would look for another, and warn of none
    deepspeed = need("deepspeed", "deepspeed")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="gloo", auto_mpi_discovery=False, verbose=False, timeout=timeout
    )
    return here


def check_group(here: DistributedEnvironment, library: LibraryArguments) -> None:
    """Compares what the launcher said with what torch, accelerate and transformers have seen.

    accelerate can take a launched process for a lonely one: two trainings of one process then
    write over each other's files, and both end as if all were well. That is a LaunchError.
    """
    joined = dist.get_world_size() if dist.is_initialized() else 1
    if not here.world_size == joined == library.world_size:
        raise LaunchError(
            f"the launcher started {here.world_size} processes, but the group of this one has "
            f"{joined} and accelerate counts {library.world_size}: this would be another training "
            "than the one asked for. Look for ACCELERATE_... variables in the environment, or "
            "start the run by `luthier train --nproc N`."
        )
    if here.world_size > 1:
        backend = dist.get_backend()
        console.info(
            f"{here.world_size} processes, {library.device.type} each, joined by {backend}"
        )


@contextmanager
def leaving_group(*, owns_process: bool) -> Iterator[None]:
    """Leaves the group that was joined in the block, if the process ends with the run.

    In a process that goes on it stays, for the next run.
    """
    was_member = dist.is_initialized()
    try:
        yield
    finally:
        if dist.is_initialized() and not was_member:
            if owns_process:
                _leave()
            else:
                atexit.register(_leave)


def _leave() -> None:
    if not dist.is_initialized():
        return
    if not has_accelerator():
        dist.destroy_process_group()
        return
    # a device's group may wait for work that the other processes will never do
    leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
    leaving.start()
    leaving.join(LEAVING_TIMEOUT_S)


# Rendezvous after a restart. torchrun's own store lives through its restarts, and torch's groups
# look up in it under the same names where the ranks of this start can be reached: they find the
# addresses of the last start (github.com/pytorch/pytorch/issues/135712; torch 2.13 still does).
# Remove this when a bare `init_process_group` survives `torchrun --max-restarts`.


def _rendezvous_in_new_store(here: DistributedEnvironment, timeout: timedelta) -> None:
    """Has the ranks of a restart meet in a new store, which rank 0 keeps.

    On a first start, and under launchers that keep no store, nothing changes.
    """
    if here.world_size == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    def open_store() -> int:
        _kept.append(
            dist.TCPStore(host, 0, None, True, timeout, wait_for_workers=False, multi_tenant=True)
        )
        return int(_kept[-1].port)

    store = dist.TCPStore(host, port, None, False, timeout, wait_for_workers=False)
    new_port = rendezvous(store, here.rank, here.world_size, timeout, open_store)
    if new_port is not None:
        os.environ["MASTER_PORT"] = str(new_port)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def rendezvous(
    store: Any, rank: int, world_size: int, timeout: timedelta, open_store: Callable[[], int]
) -> int | None:
    """The port of the new store where the ranks of this start meet; None on the first start.

    Nobody but rank 0 can know which start this is: launchers of several machines count for
    themselves. So each rank asks under a name that was never used, and goes by an answer to that
    name only; rank 0 goes on when it has been thanked under the name of this start. Every rank
    calls it; the store holds whatever earlier starts have left in it. If not all ranks come within
    the timeout, it is a TimeoutError.
    """
    end = time.monotonic() + timeout.total_seconds()

    def rest(problem: str) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"the ranks of this run do not meet: {problem}")
        time.sleep(POLL_S)

    if rank > 0:
        name = uuid.uuid4().hex
        store.set(f"luthier/asks/{rank}", name)
        while not store.check([f"luthier/answer/{name}"]):
            rest("rank 0 has not come")
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
            rest(f"ranks {', '.join(map(str, sorted(waiting)))} have not come")
    return new_port or None
