"""One command -> a process for each device: how many, how they meet, how they end."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import luthier
from luthier import console
from luthier.arguments.record import Arguments
from luthier.collector import resting_collector
from luthier.errors import ArgumentsError
from luthier.processes.environment import (
    count_accelerators,
    count_cores,
    distributed_environment,
    environment_problems,
)
from luthier.secrecy import MASK, learn, masked_words

NUMBERS = (
    "NNODES",
    "NODE_RANK",
    "NPROC_PER_NODE",
    "MASTER_PORT",
    "MIN_NNODES",
    "MAX_NNODES",
    "MAX_RESTARTS",
)

DEFAULT_PORT = "29500"

PARENT = "LUTHIER_PARENT"
"""Where the parent tells its number; what other programs start is not ended by us."""

PRIVATE = "LUTHIER_PRIVATE_WORDS"
"""Where words with secrets are, which all may read in argument lists: place in the command line ->
word."""

PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


@dataclass(frozen=True)
class Launch:
    """The processes that this machine starts."""

    nproc: int  # how many
    options: tuple[str, ...]  # what torch's launcher is told, a word each
    environment: Mapping[str, str]  # what the processes are told beside that
    notes: tuple[str, ...]  # what was chosen, one line each

    def words(self, command: Sequence[str]) -> list[str]:
        """The arguments of `python -m torch.distributed.run` for the words after `luthier`."""
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

    `nproc` and `max_restarts` win over the environment, which is read as torch's and
    LLaMA-Factory's launchers read it. All that does not fit is in one ArgumentsError.
    """
    if distributed_environment(environment).is_launched:
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
    options, machines, problems = _rendezvous(said)
    if nproc > num_accelerators > 0:
        problems.append(
            f"{nproc} processes are asked for, and {num_accelerators} accelerators are visible. "
            f"Set nproc to at most {num_accelerators}, or use_cpu: true to try it on the CPU."
        )
    if problems:
        raise ArgumentsError(problems)
    # what holds the weights may work among processes only, be there one
    needs_group = arguments.flat().get("deepspeed") or arguments.flat().get("fsdp")
    is_forced = said.get("FORCE_TORCHRUN", "0").lower() in ("1", "true", "y", "yes", "on")
    if not (nproc > 1 or max_restarts > 0 or machines or is_forced or needs_group):
        return None

    # makes `python -m luthier` mean this package, and nothing in the user's folder
    told = {"PYTHONSAFEPATH": "1"}
    folder = Path(luthier.__file__).parents[1]
    if folder.name not in ("site-packages", "dist-packages"):
        told["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), said.get("PYTHONPATH"))))
    if not machines and sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in said:
        told["GLOO_SOCKET_IFNAME"] = "lo"  # what stays on a machine is not for its network
    notes = []
    if nproc > 1 or machines:
        processes = "1 process" if nproc == 1 else f"{nproc} processes"
        notes.append(f"starting {processes}{machines}")
    if nproc > 1 and "OMP_NUM_THREADS" not in said:
        told["OMP_NUM_THREADS"] = threads = str(max(count_cores() // nproc, 1))
        notes.append(
            f"OMP_NUM_THREADS = {threads} ({count_cores()} cores, {nproc} processes of a machine)"
        )
    options += ("--nproc-per-node", str(nproc), "--max-restarts", str(max_restarts))
    return Launch(nproc, options, told, tuple(notes))


def _rendezvous(said: Mapping[str, str]) -> tuple[tuple[str, ...], str, list[str]]:
    """Options of torch's launcher on machines, words on them for the log, and what is wrong."""
    nnodes, port = said.get("NNODES", "1"), said.get("MASTER_PORT", DEFAULT_PORT)
    problems = []
    if any(name in said for name in ("RDZV_ID", "RDZV_ENDPOINT", "MIN_NNODES", "MAX_NNODES")):
        least = said.get("MIN_NNODES", said.get("MAX_NNODES", nnodes))
        most = said.get("MAX_NNODES", said.get("MIN_NNODES", nnodes))
        endpoint = said.get("RDZV_ENDPOINT")
        if endpoint is None and "MASTER_ADDR" in said:
            endpoint = f"{said['MASTER_ADDR']}:{port}"
        if not 1 <= int(least) <= int(most):
            problems.append(f"MIN_NNODES {least} and MAX_NNODES {most}: expected 1 <= MIN <= MAX.")
        if endpoint is None:
            problems.append(
                "the machines need a place to meet: set RDZV_ENDPOINT=HOST:PORT to one of "
                "them, the same on each."
            )
        number, words = (
            (least, least) if least == most else (f"{least}:{most}", f"{least} to {most}")
        )
        options = ["--nnodes", number, "--rdzv-backend", said.get("RDZV_BACKEND", "c10d")]
        options += ["--rdzv-endpoint", str(endpoint)]
        options += ["--rdzv-id", said["RDZV_ID"]] if "RDZV_ID" in said else []
        return tuple(options), f" here, of {words} machines that meet at {endpoint}", problems
    if int(nnodes) > 1:
        absent = [name for name in ("NODE_RANK", "MASTER_ADDR") if name not in said]
        node, address = said.get("NODE_RANK", "0"), said.get("MASTER_ADDR", "")
        if absent:
            problems.append(
                f"NNODES is {nnodes} and {' and '.join(absent)} not set. NODE_RANK is "
                "the number of this machine, from 0 on; MASTER_ADDR and MASTER_PORT are the "
                "address of machine 0."
            )
        elif int(node) >= int(nnodes):
            problems.append(
                f"NODE_RANK is {node} and NNODES {nnodes}; machines are numbered from 0 on."
            )
        options = ["--nnodes", nnodes, "--node-rank", node]
        options += ["--master-addr", address, "--master-port", port]
        return tuple(options), f" here, on machine {node} of {nnodes} (from 0 on)", problems
    options = ["--nnodes", "1", "--local-addr", "127.0.0.1"]
    if "MASTER_PORT" in said:
        options += ["--master-addr", "127.0.0.1", "--master-port", port]
    else:
        options += ["--standalone"]
    return tuple(options), "", list(environment_problems(said))


def start(launch: Launch, command: Sequence[str]) -> int:
    """Starts the processes of a run and waits for them; `command` is the words after `luthier`.

    A signal that asks this process to end is passed on to them, so that they may save first; the
    third one kills them.

    Returns:
        The exit code of the process that ended first of those that failed; 70 if a signal killed
        it that did not come from here; 0 if none failed.

    Raises:
        LaunchError: if the machines do not find each other.
    """
    for note in launch.notes:
        console.info(note)
    words, private = secrets_to_environment(command)
    os.environ.update(launch.environment, **{PARENT: str(os.getpid())}, **private)
    with resting_collector():
        from luthier.processes.agent import run_agent
    if "LOGLEVEL" not in os.environ:  # torch's own variable for its launcher's lines
        logging.disable(logging.ERROR)
    try:
        return run_agent(launch.words(words))
    finally:
        os.environ.pop(PRIVATE, None)
        logging.disable(logging.NOTSET)


def with_args_file(words: Sequence[str]) -> list[str]:
    """The words of `<script>.args`, which only a script of that name reads, before those given."""
    file = Path(sys.argv[0]).with_suffix(".args") if sys.argv[0] else None
    if file is None or not file.is_file():
        return list(words)
    return [*file.read_text(encoding="utf-8").split(), *words]


def secrets_to_environment(command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command with stars in the place of its secrets, and the variable that holds them."""
    shown = masked_words(command)
    words = {
        str(place): word
        for place, (word, other) in enumerate(zip(command[1:], shown[1:], strict=True))
        if word != other
    }
    return [command[0], *shown[1:]], {PRIVATE: json.dumps(words)} if words else {}


def secrets_from_environment(words: Sequence[str]) -> list[str]:
    """The words after `luthier train`, those that were kept private in their places again.

    The variable is taken away, so that what this process starts does not inherit it.
    """
    told = json.loads(os.environ.pop(PRIVATE, "{}"))
    found = list(words)
    for place, word in told.items():
        if int(place) < len(found) and MASK in found[int(place)]:
            found[int(place)] = word
    learn("", list(told.values()))
    return found


def end_with_parent() -> None:
    """Has Linux send SIGTERM to this process when the one that launched it is gone."""
    if sys.platform != "linux" or os.environ.pop(PARENT, None) != str(os.getppid()):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went in between
        os.kill(os.getpid(), signal.SIGTERM)
