"""The distributed environment: what a launcher said of the processes, what this machine has."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.arguments.record import Arguments
from luthier.collector import resting_collector

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What every launcher sets for each of its processes: torchrun, deepspeed, accelerate, ours."""

OTHER_SIZES = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
"""Where mpirun and srun say how many copies of a command they have started."""

DEVICE_FILES = (
    "nvidia[0-9]*",
    "kfd",  # AMD
    "dxg",  # Windows' subsystem for Linux
    "dri/renderD*",  # Intel and others
    "davinci[0-9]*",  # Ascend
    "accel/accel*",  # Habana
    "mlu*",  # Cambricon
    "musa*",  # Moore Threads
)
"""What Linux shows under /dev where there is an accelerator."""


@dataclass(frozen=True)
class DistributedEnvironment:
    """The processes of a run, seen from one of them."""

    rank: int = 0  # its number among all
    world_size: int = 1  # how many there are
    local_rank: int = 0  # its number on its machine, and that of its device
    is_launched: bool = False
    """Whether a launcher started it; a run of one process may have one, too."""


def distributed_environment(
    environment: Mapping[str, str] = os.environ,
) -> DistributedEnvironment:
    """What the launcher said; one process where there is none.

    Only for an environment that `environment_problems` finds nothing wrong with.
    """
    if not all(environment.get(name) for name in NAMES):
        return DistributedEnvironment()
    rank, world_size, local_rank = (int(environment[name]) for name in NAMES)
    return DistributedEnvironment(rank, world_size, local_rank, is_launched=True)


def environment_problems(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """What is wrong with what the launcher said.

    Processes that do not find each other would each train alone, on the same files.
    """
    said = {name: value for name in NAMES if (value := environment.get(name))}
    absent = [name for name in NAMES if name not in said]
    numbers = [name for name, value in said.items() if not value.isdecimal()]
    if numbers:
        yield f"{numbers[0]} in the environment is {said[numbers[0]]!r}; expected a number."
    elif not absent and int(said["RANK"]) >= int(said["WORLD_SIZE"]):
        yield (
            f"the launcher says RANK {said['RANK']} of WORLD_SIZE {said['WORLD_SIZE']}; ranks "
            "begin at 0, so one of the two is wrong."
        )
    elif absent and int(said.get("WORLD_SIZE", "1")) > 1:
        yield (
            f"the environment says WORLD_SIZE {said['WORLD_SIZE']} but not {', '.join(absent)}, so "
            "this process would train alone. Start it by `luthier train`, torchrun, deepspeed or "
            "accelerate (where WORLD_SIZE counts machines: NNODES=$WORLD_SIZE NODE_RANK=$RANK "
            "luthier train ...)."
        )
    elif absent:
        for name in OTHER_SIZES:
            if environment.get(name, "1") not in ("", "0", "1"):
                yield (
                    f"{environment[name]} copies of this command were started ({name}), and each "
                    "would train alone. Start one on each machine: `luthier train` makes a "
                    "process for each device, and NNODES, NODE_RANK and MASTER_ADDR join machines."
                )
                return


def is_restart(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher started this process again because a rank had failed."""
    count = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return count.isdecimal() and int(count) > 0


def count_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_accelerators() -> int:
    """The accelerators that torch sees; it is imported only where there may be some."""
    if sys.platform == "linux" and not any(
        any(Path("/dev").glob(pattern)) for pattern in DEVICE_FILES
    ):
        return 0
    with resting_collector():
        import torch
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def has_accelerator() -> bool:
    """Whether torch sees a device other than the CPU."""
    import torch

    return bool(torch.accelerator.is_available())


def is_on_cpu(arguments: Arguments) -> bool:
    """Whether the run computes on the CPU: it was told to, or nothing else is there."""
    told = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes", "on")
    return arguments.training.use_cpu or told or not has_accelerator()
