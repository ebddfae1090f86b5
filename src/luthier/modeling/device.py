"""What the device of a run has: free memory, a rate of matrix products, random numbers."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch
from torch import Tensor

CGROUPS = Path("/sys/fs/cgroup")

UNLIMITED = 2**60
"""Limits from here on mean that there is none (version 1 writes a huge number)."""

PEAK_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    ("B200", {"half": 2250}),
    ("H200", {"half": 989, "tf32": 494, "float32": 67}),
    ("H100 PCIe", {"half": 756, "tf32": 378, "float32": 51}),
    ("H100 NVL", {"half": 835, "tf32": 417, "float32": 60}),
    ("H100", {"half": 989, "tf32": 494, "float32": 67}),
    ("H800 PCIe", {"half": 756, "tf32": 378, "float32": 51}),
    ("H800", {"half": 989, "tf32": 494, "float32": 67}),
    ("H20", {"half": 148, "tf32": 74, "float32": 44}),
    ("A100", {"half": 312, "tf32": 156, "float32": 19.5}),
    ("A800", {"half": 312, "tf32": 156, "float32": 19.5}),
    ("A30", {"half": 165, "tf32": 82, "float32": 10.3}),
    ("A40", {"half": 149.7, "tf32": 74.8, "float32": 37.4}),
    ("A10G", {"half": 70, "tf32": 35, "float32": 35}),
    ("A10", {"half": 125, "tf32": 62.5, "float32": 31.2}),
    ("L40S", {"half": 362, "tf32": 183, "float32": 91.6}),
    ("L40", {"half": 181, "tf32": 90.5, "float32": 90.5}),
    ("L4", {"half": 121, "tf32": 60, "float32": 30.3}),
    ("V100-PCIE", {"float16": 112, "float32": 14}),
    ("V100", {"float16": 125, "float32": 15.7}),
    ("T4", {"float16": 65, "float32": 8.1}),
    ("RTX A6000", {"half": 154.8, "tf32": 77.4, "float32": 38.7}),
    ("RTX 4090", {"half": 165.2, "tf32": 82.6, "float32": 82.6}),
    ("RTX 3090 Ti", {"half": 80, "tf32": 40, "float32": 40}),
    ("RTX 3090", {"half": 71, "tf32": 35.6, "float32": 35.6}),
    ("MI300X", {"half": 1307, "float32": 163.4}),
)
"""Part of a GPU's name -> dense peak by the kind of product, the first that fits.

From the vendors' data sheets and architecture papers, without sparsity, sums in float32; `half` is
bfloat16 and float16 alike.
"""

MEASURED_S = 0.25
"""The most seconds that a CPU's rate is measured for."""

MEASURED_SIZES = (128, 256, 512, 1024)


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
    """Where torch's generators stood that a forward pass draws from.

    Attributes:
        cpu: state of the CPU's generator.
        own: state of the device's generator; None on a CPU.
        device: of the model.
    """

    cpu: Tensor
    own: Tensor | None
    device: torch.device

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


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Multiplications and additions a second that a device can do at most.

    A GPU's is that of its data sheet; a CPU's is measured now, on square matrices that fit its
    caches, on the threads that torch uses, for a quarter of a second.

    Args:
        device: of the run.
        dtype: that products are computed in.

    Returns:
        None for a GPU that the table does not know.
    """
    if device.type == "cpu":
        return measure_products(dtype)
    if device.type != "cuda":
        return None
    return sheet_flops(torch.cuda.get_device_name(device), _kinds(dtype))


def sheet_flops(name: str, kinds: tuple[str, ...]) -> float | None:
    """The data sheet's figure for a GPU's name and the first of the kinds that it states."""
    words = name.upper().replace("-", " ")
    for part, rates in PEAK_TFLOPS:
        if f" {part.upper()} ".replace("-", " ") in f" {words} ":
            return next((rates[kind] * 1e12 for kind in kinds if kind in rates), None)
    return None


@cache
def measure_products(dtype: torch.dtype) -> float:
    """The best rate of some square matrix products on the CPU, in FLOP a second; taken once."""
    best = 0.0
    ends = time.perf_counter() + MEASURED_S
    generator = torch.Generator().manual_seed(0)
    for size in MEASURED_SIZES:
        matrix = torch.rand(size, size, generator=generator).to(dtype)
        work = 2 * size**3
        for _ in range(20):
            if best and time.perf_counter() + work / best > ends:
                return best
            begun = time.perf_counter()
            matrix @ matrix
            best = max(best, work / (time.perf_counter() - begun))
    return best


def _kinds(dtype: torch.dtype) -> tuple[str, ...]:
    if dtype is torch.float32:
        is_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return ("tf32", "float32") if is_tf32 else ("float32",)
    return str(dtype).removeprefix("torch."), "half"


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
