"""The group of a run's processes: joined once the data is there, left at the end."""

from __future__ import annotations

import atexit
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
from luthier.distributed.deepspeed import use_gloo
from luthier.errors import ArgumentsError, LaunchError, LuthierError
from luthier.optional import need
from luthier.processes.launched import World, count_cores, launch_problems, launched_world
from luthier.processes.restarted import meet_anew
from luthier.training.to_training_arguments import has_accelerator, is_on_cpu

__all__ = ["World", "check_launch", "check_world", "join_world", "membership"]

MEETING_TIMEOUT = timedelta(minutes=30)
"""How long a process that is done waits for those that still write."""

PROBLEM_TIMEOUT = timedelta(seconds=5)
"""How long processes wait for each other to compare what went wrong."""

LEAVING_TIMEOUT_S = 10.0
"""How long a process tries to leave the group of a GPU in good order."""

_num_runs = 0
"""Runs that this process has begun; each has names of its own in the group's store."""


def check_launch(arguments: Arguments) -> None:
    """Compares what the launcher said with the arguments and with this machine.

    Raises:
        ArgumentsError: if it cannot be, or asks for what is not there.
    """
    problems = list(launch_problems()) or list(_problems(arguments))
    if problems:
        raise ArgumentsError(problems)


def join_world(arguments: Arguments) -> World:
    """Joins the processes that a launcher has started; alone, nothing happens.

    On a CPU the group is made here, because transformers gives its own no time limit and
    accelerate gives DeepSpeed's none at all; on an accelerator they make it a moment later, when
    the library's arguments are made. `check_world` then compares.

    Args:
        arguments: resolved, so that `ddp_timeout` is one that ends; `check_launch` has seen them.
    """
    world, on_cpu = launched_world(), is_on_cpu(arguments)
    if "LOCAL_SIZE" in os.environ:  # deepspeed's launcher says it by this name
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])
    timeout = timedelta(seconds=arguments.training.ddp_timeout)
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


def _problems(arguments: Arguments) -> Iterator[str]:
    """What the arguments, the launcher and this machine say against each other."""
    world, training = launched_world(), arguments.training
    if not world.is_launched and (training.nproc or 1) > 1:
        yield (
            f"nproc: {training.nproc} processes are asked for, and this run was started in one. "
            "`luthier train` starts as many as nproc says; from Python, start the script by "
            "torchrun."
        )
    if world.is_launched and is_on_cpu(arguments):
        if training.ddp_backend not in (None, "gloo"):
            yield (
                f"ddp_backend: {training.ddp_backend} needs devices that are not here; on a CPU "
                "processes talk by gloo. Leave it out."
            )
    elif world.is_launched and world.local_rank >= torch.accelerator.device_count():
        yield (
            f"the launcher started process {world.local_rank} on this machine (counted from 0), "
            f"and {torch.accelerator.device_count()} accelerators are visible. Start one process "
            "for each."
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    ours = "bf16" if training.bf16 else "fp16" if training.fp16 else "no"
    if precision not in ("no", ours):
        yield (
            f"mixed_precision: accelerate's launcher says {precision}, and this run says "
            f"{'neither bf16 nor fp16' if ours == 'no' else ours}. Set {precision}: true in the "
            "run's arguments, or mixed_precision: 'no' for accelerate; the arguments decide."
        )


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
def membership(*, owns_process: bool) -> Iterator[None]:
    """Ends a run among others, whatever its end is.

    At a good end processes that are done wait for those that still write, and so they do where all
    of them raise the same. One that failed alone does not: the others may never come. The group
    that was joined in the block is left, if the process ends with the run; in a process that goes
    on it stays, for the next run.

    Args:
        owns_process: whether the process ends with the run.
    """
    global _num_runs
    _num_runs += 1
    was_member = dist.is_initialized()
    try:
        yield
        if dist.is_initialized():
            _meet()
    except LuthierError as problem:
        if dist.is_initialized():
            if problem.is_common:
                _meet()
            else:
                problem.is_common = _is_said_by_first(str(problem))
        raise
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


def _meet() -> None:
    """Waits until every process has come here; without a collective, whose time may be short."""
    store = dist.distributed_c10d._get_default_store()
    try:
        store.set(_names("done")[dist.get_rank()], "")
        store.wait(_names("done"), MEETING_TIMEOUT)
        _part(store)
    except dist.DistError as problem:
        console.warn(f"not all processes came to the end of the run: {problem}")


def _is_said_by_first(text: str) -> bool:
    """Whether the first process has the same to say; for which it is given a moment."""
    store = dist.distributed_c10d._get_default_store()
    first = _names("problem")[0]
    is_same = dist.get_rank() == 0
    with suppress(dist.DistError):  # the others have nothing to say, or the store is gone
        if is_same:
            store.set(first, text)
        else:
            store.wait([first], PROBLEM_TIMEOUT)
            is_same = store.get(first).decode() == text
        _part(store)
    return is_same


def _part(store: dist.Store) -> None:
    """Lets the first process, which may keep the store, outlive the others' last look into it."""
    if dist.get_rank() == 0:
        store.wait(_names("read")[1:], PROBLEM_TIMEOUT)
    else:
        store.set(_names("read")[dist.get_rank()], "")


def _names(what: str) -> list[str]:
    """Where in the store each process says something about this run."""
    return [f"luthier/{_num_runs}/{what}/{rank}" for rank in range(dist.get_world_size())]


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
