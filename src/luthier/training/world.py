"""The group of a run's processes: joined once the data is there, left at the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import TrainingArguments as LibraryArguments

from luthier import console
from luthier.arguments.record import Arguments
from luthier.errors import ArgumentsError, LaunchError, LuthierError
from luthier.optional import need
from luthier.training.launched import World, count_cores, launch_problems, launched_world
from luthier.training.library_arguments import has_accelerator, is_on_cpu
from luthier.training.restarted import meet_anew
from luthier.training.strategies.deepspeed import end_group, use_gloo

__all__ = ["World", "check_world", "join_world", "membership"]

MEETING_TIMEOUT = timedelta(minutes=30)
"""How long a process that is done waits for those that still write."""

PROBLEM_TIMEOUT = timedelta(seconds=5)
"""How long processes wait for each other to compare what went wrong."""

LEAVING_TIMEOUT_S = 10.0
"""How long a process that failed tries to leave the group of a GPU in good order."""


def join_world(arguments: Arguments) -> World:
    """Joins the processes that a launcher has started; alone, nothing happens.

    On a CPU the group is made here, because transformers gives its own no time limit and
    accelerate gives DeepSpeed's none at all; on an accelerator they make it a moment later, when
    the library's arguments are made. `check_world` then compares.

    Args:
        arguments: resolved, so that `ddp_timeout` is one that ends.

    Raises:
        ArgumentsError: if what the launcher said cannot be, or asks for what is not there.
    """
    problems = list(launch_problems())
    world = launched_world()
    training = arguments.training
    if not world.is_launched and (training.nproc or 1) > 1:
        problems.append(
            f"nproc: {training.nproc} processes are asked for, and this run was started in one. "
            "`luthier train` starts as many as nproc says; from Python, start the script by "
            "torchrun."
        )
    on_cpu = is_on_cpu(arguments)
    if world.is_launched and on_cpu and training.ddp_backend not in (None, "gloo"):
        problems.append(
            f"ddp_backend: {training.ddp_backend} needs devices that are not here; on a CPU "
            "processes talk by gloo. Leave it out."
        )
    if problems:
        raise ArgumentsError(problems)
    if "LOCAL_SIZE" in os.environ:  # deepspeed's launcher says it by this name
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])
    timeout = timedelta(seconds=training.ddp_timeout)
    if world.is_launched and not dist.is_initialized():
        meet_anew(world, timeout)
    if world.is_launched and on_cpu and not dist.is_initialized():
        _share_threads()
        if _is_deepspeed(arguments):
            deepspeed = need("deepspeed", "deepspeed")
            use_gloo()
            deepspeed.init_distributed(
                dist_backend="gloo", auto_mpi_discovery=False, verbose=False, timeout=timeout
            )
        else:
            dist.init_process_group("gloo", timeout=timeout)
    return world


def check_world(world: World, library: LibraryArguments) -> None:
    """Compares what the launcher said with what torch, accelerate and transformers have seen.

    accelerate can take a launched process for a lonely one: two trainings of one process then
    write over each other's files, and both end as if all were well.

    Raises:
        LaunchError: if they have not seen the same number of processes.
    """
    joined = dist.get_world_size() if dist.is_initialized() else 1
    if not world.world_size == joined == library.world_size:
        raise LaunchError(
            f"the launcher started {world.world_size} processes, but the group of this one has "
            f"{joined} and accelerate counts {library.world_size}: this would be another training "
            "than the one asked for. Look for ACCELERATE_... variables in the environment, or "
            "start the run by `luthier train --nproc N`."
        )
    if world.world_size > 1:
        backend = dist.get_backend()
        console.info(
            f"{world.world_size} processes, {library.device.type} each, joined by {backend}"
        )


@contextmanager
def membership() -> Iterator[None]:
    """Leaves, when the block ends, the group that was joined in it.

    At a good end processes that are done wait for those that still write, and so they do where all
    of them raise the same. One that failed alone leaves at once: the others may never come.
    """
    was_member = dist.is_initialized()
    try:
        yield
    except LuthierError as problem:
        if dist.is_initialized() and not was_member:
            if problem.is_common:
                _meet()
            else:
                problem.is_common = _is_said_by_first(str(problem))
            _leave_others_behind()
        raise
    except BaseException:
        if dist.is_initialized() and not was_member:
            _leave_others_behind()
        raise
    if dist.is_initialized() and not was_member:
        _meet()
        end_group()


def _leave_others_behind() -> None:
    if not has_accelerator():
        end_group()
        return
    # a device's group may wait for work that the other processes will never do
    leaving = threading.Thread(target=end_group, daemon=True)
    leaving.start()
    leaving.join(LEAVING_TIMEOUT_S)


def _meet() -> None:
    """Waits until every process has come here; without a collective, whose time may be short."""
    store = dist.distributed_c10d._get_default_store()
    names = [f"luthier/done/{rank}" for rank in range(dist.get_world_size())]
    try:
        store.set(names[dist.get_rank()], "")
        store.wait(names, MEETING_TIMEOUT)
    except dist.DistError as problem:
        console.warn(f"not all processes came to the end of the run: {problem}")


def _is_said_by_first(text: str) -> bool:
    """Whether the first process has the same to say; for which it is given a moment."""
    store = dist.distributed_c10d._get_default_store()
    names = [f"luthier/problem/{rank}" for rank in range(dist.get_world_size())]
    try:
        store.set(names[dist.get_rank()], text)
        with suppress(dist.DistStoreError):  # some have nothing to say
            store.wait(names, PROBLEM_TIMEOUT)
        return bool(store.check(names[:1])) and store.get(names[0]).decode() == text
    except dist.DistError:  # the process that kept the store is gone
        return False


def _is_deepspeed(arguments: Arguments) -> bool:
    asked = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    return asked or bool(arguments.flat().get("deepspeed"))


def _share_threads() -> None:
    """Gives each process of a machine its part of the cores, if nobody has said how many."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if "OMP_NUM_THREADS" in os.environ or local == 1:
        return
    threads = max(count_cores() // local, 1)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    console.info(f"OMP_NUM_THREADS = {threads} ({count_cores()} cores, {local} processes)")
