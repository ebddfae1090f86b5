"""Arguments and environment -> the processes that this machine starts, and what torch is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import luthier
from luthier.arguments.record import Arguments
from luthier.errors import ArgumentsError
from luthier.processes.launched import count_cores, launch_problems, launched_world
from luthier.processes.launching.devices import count_accelerators

NUMBERS = (
    "NNODES",
    "NODE_RANK",
    "NPROC_PER_NODE",
    "MASTER_PORT",
    "MIN_NNODES",
    "MAX_NNODES",
    "MAX_RESTARTS",
)

DEFAULT_PORT = 29500


@dataclass(frozen=True)
class Launch:
    """The processes that this machine starts.

    Attributes:
        nproc: how many.
        max_restarts: how often they are started again when one of them fails.
        options: what torch's launcher is told, a word each.
        environment: what the processes are told beside that.
        notes: what was chosen, one line each.
    """

    nproc: int
    max_restarts: int
    options: tuple[str, ...]
    environment: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def words(self, command: Sequence[str]) -> list[str]:
        """The arguments of `python -m torch.distributed.run`.

        Args:
            command: the words after `luthier`; they arrive as they are, blanks and dollars too.
        """
        # the launcher puts values in the place of `${...}` and makes one dollar of two; behind
        # two hyphens it takes none of the words for its own
        escaped = (word.replace("$", "$$") for word in command)
        return [*self.options, "--module", "--", "luthier", *escaped]


def find_launch(
    arguments: Arguments,
    environment: Mapping[str, str] = os.environ,
    count: Callable[[], int] = count_accelerators,
) -> Launch | None:
    """What to start, or None where this process itself is all there is to the run.

    Args:
        arguments: of the run; `nproc` and `max_restarts` win over the environment.
        environment: as torch's and LLaMA-Factory's launchers read it.
        count: counts the accelerators of this machine.

    Raises:
        ArgumentsError: with everything that does not fit.
    """
    if launched_world(environment).is_launched:
        return None
    said = {name: value for name, value in environment.items() if value}
    problems = [
        f"{name} in the environment is {said[name]!r}; expected a number."
        for name in NUMBERS
        if not said.get(name, "0").isdecimal()
    ]
    if problems:
        raise ArgumentsError(problems)
    training = arguments.training
    num_accelerators = 0 if training.use_cpu else count()
    nproc = training.nproc or int(said.get("NPROC_PER_NODE", "0")) or num_accelerators or 1
    max_restarts = training.max_restarts or int(said.get("MAX_RESTARTS", "0"))
    machines = _Machines(said)
    problems += machines.problems()
    if not machines.are_several:
        problems += launch_problems(environment)
    if nproc > num_accelerators > 0:
        problems.append(
            f"{nproc} processes are asked for, and {num_accelerators} accelerators are visible. "
            f"Set nproc to at most {num_accelerators}, or use_cpu: true to try it on the CPU."
        )
    if problems:
        raise ArgumentsError(problems)
    is_wanted = (
        nproc > 1
        or max_restarts > 0
        or machines.are_several
        or said.get("FORCE_TORCHRUN", "0").lower() in ("1", "true", "y", "yes", "on")
        or _needs_a_group(arguments)
    )
    if not is_wanted:
        return None
    options = ("--nproc-per-node", str(nproc), "--max-restarts", str(max_restarts))
    threads = max(count_cores() // nproc, 1)
    told = {**_findable(environment), **machines.environment()}
    notes = []
    if nproc > 1 or machines.are_several:
        processes = "1 process" if nproc == 1 else f"{nproc} processes"
        notes.append(f"starting {processes}{machines.described()}")
    if nproc > 1 and "OMP_NUM_THREADS" not in said:
        told["OMP_NUM_THREADS"] = str(threads)
        notes.append(
            f"OMP_NUM_THREADS = {threads} ({count_cores()} cores, {nproc} processes of a machine)"
        )
    return Launch(nproc, max_restarts, (*machines.options(), *options), told, tuple(notes))


@dataclass(frozen=True)
class _Machines:
    """How many machines take part, and where they meet; `said` is the environment."""

    said: Mapping[str, str]

    @property
    def is_elastic(self) -> bool:
        return any(
            name in self.said for name in ("RDZV_ID", "RDZV_ENDPOINT", "MIN_NNODES", "MAX_NNODES")
        )

    @property
    def are_several(self) -> bool:
        return self.is_elastic or int(self.said.get("NNODES", "1")) > 1

    @property
    def count(self) -> str:
        """As torch takes it: a number, or `least:most`."""
        nnodes = self.said.get("NNODES", "1")
        least = self.said.get("MIN_NNODES", self.said.get("MAX_NNODES", nnodes))
        most = self.said.get("MAX_NNODES", self.said.get("MIN_NNODES", nnodes))
        return least if least == most else f"{least}:{most}"

    @property
    def endpoint(self) -> str | None:
        if "RDZV_ENDPOINT" in self.said:
            return self.said["RDZV_ENDPOINT"]
        if "MASTER_ADDR" in self.said:
            return f"{self.said['MASTER_ADDR']}:{self.said.get('MASTER_PORT', DEFAULT_PORT)}"
        return None

    def described(self) -> str:
        if self.is_elastic:
            return (
                f" here, of {self.count.replace(':', ' to ')} machines that meet at {self.endpoint}"
            )
        if self.are_several:
            return f" here, on machine {self.said['NODE_RANK']} of {self.count} (from 0 on)"
        return ""

    def problems(self) -> Iterator[str]:
        said = self.said
        if self.is_elastic:
            least, _, most = self.count.partition(":")
            if int(least) < 1 or int(most or least) < int(least):
                yield f"MIN_NNODES {least} and MAX_NNODES {most}: expected 1 <= MIN <= MAX."
            if self.endpoint is None:
                yield (
                    "the machines need a place to meet: set RDZV_ENDPOINT=HOST:PORT to one of "
                    "them, the same on each."
                )
        elif self.are_several:
            absent = [name for name in ("NODE_RANK", "MASTER_ADDR") if name not in said]
            if absent:
                yield (
                    f"NNODES is {said['NNODES']} and {' and '.join(absent)} not set. NODE_RANK is "
                    "the number of this machine, from 0 on; MASTER_ADDR and MASTER_PORT are the "
                    "address of machine 0."
                )
            elif int(said["NODE_RANK"]) >= int(said["NNODES"]):
                yield (
                    f"NODE_RANK is {said['NODE_RANK']} and NNODES {said['NNODES']}; machines are "
                    "numbered from 0 on."
                )

    def options(self) -> tuple[str, ...]:
        said = self.said
        if self.is_elastic:
            return (
                *("--nnodes", self.count),
                *("--rdzv-backend", said.get("RDZV_BACKEND", "c10d")),
                *("--rdzv-endpoint", str(self.endpoint)),
                *(("--rdzv-id", said["RDZV_ID"]) if "RDZV_ID" in said else ()),
            )
        if self.are_several:
            return (
                *("--nnodes", self.count),
                *("--node-rank", said["NODE_RANK"]),
                *("--master-addr", said["MASTER_ADDR"]),
                *("--master-port", said.get("MASTER_PORT", str(DEFAULT_PORT))),
            )
        here = ("--nnodes", "1", "--local-addr", "127.0.0.1")
        if "MASTER_PORT" in said:
            return (*here, "--master-addr", "127.0.0.1", "--master-port", said["MASTER_PORT"])
        return (*here, "--standalone")

    def environment(self) -> dict[str, str]:
        if self.are_several or sys.platform != "linux" or "GLOO_SOCKET_IFNAME" in self.said:
            return {}
        return {"GLOO_SOCKET_IFNAME": "lo"}  # what stays on a machine is not for its network


def _needs_a_group(arguments: Arguments) -> bool:
    """Whether what holds the weights works among processes only, be there one."""
    return bool(arguments.flat().get("deepspeed") or arguments.flat().get("fsdp"))


def _findable(environment: Mapping[str, str]) -> dict[str, str]:
    """What makes `python -m luthier` mean this package, and nothing in the user's folder."""
    told = {"PYTHONSAFEPATH": "1"}
    folder = Path(luthier.__file__).parents[1]
    if folder.name not in ("site-packages", "dist-packages"):
        others = environment.get("PYTHONPATH")
        told["PYTHONPATH"] = os.pathsep.join([str(folder), *([others] if others else [])])
    return told
