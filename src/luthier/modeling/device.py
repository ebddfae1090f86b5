"""What the device of a run has: free memory, and where its random numbers stand."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

CGROUPS = Path("/sys/fs/cgroup")

UNLIMITED = 2**60
"""Limits from here on mean that there is none (version 1 writes a huge number)."""

SAYINGS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""How libraries say it that do not raise torch's own error."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device; None where nobody tells.

    On a CPU what the system can give without swapping, or what a container's limit leaves, shared
    evenly between the processes of a launch on this machine.
    """
    if device.type == "cpu":
        free = min([int(psutil.virtual_memory().available), *_left_by_cgroups()])
        return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return None


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(each in str(problem) for each in SAYINGS)


def release(device: torch.device) -> None:
    """Gives back what is no longer used."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()


@dataclass(frozen=True)
class RandomState:
    """Where torch's generators stood that a forward pass draws from."""

    cpu: Tensor  # state of the CPU's generator
    own: Tensor | None  # state of the device's generator; None on a CPU
    device: torch.device  # of the model

    @classmethod
    def take(cls, device: torch.device) -> RandomState:
        """The state now; it lies on the host, so nothing waits for the device."""
        is_cpu = device.type == "cpu"
        own = None if is_cpu else torch.get_device_module(device).get_rng_state(device)
        return cls(torch.get_rng_state(), own, device)

    def restore(self) -> None:
        """Has the generators go on from here."""
        torch.set_rng_state(self.cpu)
        if self.own is not None:
            torch.get_device_module(self.device).set_rng_state(self.own, self.device)


def _left_by_cgroups() -> Iterator[int]:
    """What the limits of this process's control group and of those above it leave."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names, root = ("memory.max", "memory.current", "inactive_file"), CGROUPS
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = CGROUPS / "memory"
        else:
            continue
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            left = _left(folder, *names)
            if left is not None:
                yield left
            if folder == root:
                break


def _left(folder: Path, limit_name: str, used_name: str, cache_name: str) -> int | None:
    try:
        limit, used, counts = (
            (folder / name).read_text(encoding="utf-8").strip()
            for name in (limit_name, used_name, "memory.stat")
        )
    except OSError:
        return None
    if limit == "max" or int(limit) >= UNLIMITED:
        return None
    cached = dict(line.split() for line in counts.splitlines()).get(cache_name, "0")
    return max(int(limit) - int(used) + int(cached), 0)
