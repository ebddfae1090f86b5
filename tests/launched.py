"""functions, runs and commands in processes of their own, as a launcher starts them"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = ("torch.distributed", "transformers", "accelerate", "peft", "datasets", "luthier")
"""Imported once by the process of which ranks are forked, so that a rank starts at once."""

TIMEOUT_S = 240.0
"""A generous time for all ranks to end; nothing is measured by it."""

GRACE_S = 45.0
"""Time for the other ranks to end by themselves when one of them has failed."""


@dataclass(frozen=True)
class Ended:
    """How one process ended.

    Attributes:
        exit_code: 0, what it exited with, or minus the signal that ended it.
        value: what its function returned; None if it did not.
        stdout: what it wrote there.
        stderr: what it wrote there.
    """

    exit_code: int
    value: Any
    stdout: str
    stderr: str


class Ranks:
    """Processes that run the same function, one for each rank; made by `started_ranks`.

    Attributes:
        processes: by rank; `processes[1].pid` can be sent a signal.
    """

    def __init__(self, folder: Path, processes: list[Any]) -> None:
        self.folder, self.processes = folder, processes

    def stderr(self, rank: int) -> str:
        """What a rank has written so far."""
        return _text(self.folder / f"{rank}.stderr")

    def wait(self, timeout_s: float = TIMEOUT_S, grace_s: float | None = GRACE_S) -> list[Ended]:
        """How the ranks ended; those that have not after this time are killed.

        Args:
            timeout_s: for all of them.
            grace_s: for the others when one has failed; None for the whole time.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and any(each.is_alive() for each in self.processes):
            has_failed = any(each.exitcode not in (None, 0) for each in self.processes)
            if has_failed and grace_s is not None:
                end, grace_s = min(end, time.monotonic() + grace_s), None
            time.sleep(0.02)
        self.kill()
        return [self._ended(rank) for rank in range(len(self.processes))]

    def kill(self) -> None:
        """Ends all that still run."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def _ended(self, rank: int) -> Ended:
        answer = self.folder / f"{rank}.answer"
        return Ended(
            self.processes[rank].exitcode,
            pickle.loads(answer.read_bytes()) if answer.exists() else None,
            _text(self.folder / f"{rank}.stdout"),
            _text(self.folder / f"{rank}.stderr"),
        )


@contextmanager
def started_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    *arguments: Any,
    environment: Mapping[str, str] = {},
) -> Iterator[Ranks]:
    """Ranks that run a function on one thread each; when the context ends they are killed.

    The environment is torchrun's. Who joins the group (accelerate does, when the library's
    arguments are made; or `torch.distributed.init_process_group("gloo")`) is up to the function.

    Args:
        function: of a module that can be imported; what it returns is pickled.
        num_ranks: how many processes.
        arguments: of the function, the same on every rank.
        environment: further variables.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        ranks = Ranks(Path(name), [])
        try:
            for rank in range(num_ranks):
                variables = {**os.environ, **_launched_as(rank, num_ranks, port), **environment}
                options = (Path(name) / str(rank), variables, function, arguments)
                ranks.processes.append(context.Process(target=_be_a_rank, args=options))
                ranks.processes[-1].start()
            yield ranks
        finally:
            ranks.kill()


def run_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    *arguments: Any,
    environment: Mapping[str, str] = {},
    timeout_s: float = TIMEOUT_S,
) -> list[Ended]:
    """How the ranks ended; see `started_ranks`."""
    with started_ranks(function, num_ranks, *arguments, environment=environment) as ranks:
        return ranks.wait(timeout_s)


def values_of_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    *arguments: Any,
    environment: Mapping[str, str] = {},
    timeout_s: float = TIMEOUT_S,
) -> list[Any]:
    """What the function returned on each rank.

    Raises:
        AssertionError: with the end of what they wrote, when any of them failed.
    """
    ended = run_ranks(function, num_ranks, *arguments, environment=environment, timeout_s=timeout_s)
    said = [
        f"rank {rank} ended with {each.exit_code}:\n{each.stderr[-3000:]}"
        for rank, each in enumerate(ended)
        if each.exit_code != 0
    ]
    assert not said, "\n".join(said)
    return [each.value for each in ended]


def run_luthier(words: Sequence[str]) -> None:
    """A function for the ranks: the command line `luthier WORDS`, with its exit code."""
    from luthier.cli import main

    sys.exit(main(list(words)))


def run_command(
    words: Sequence[str | Path],
    *,
    environment: Mapping[str, str] = {},
    folder: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Ended:
    """How a command ended that starts processes itself; all of its session are killed with it.

    Args:
        words: the program and its arguments.
        environment: further variables.
        folder: that it runs in.
        timeout_s: after which it is killed; its exit code is then -9.
    """
    variables = {**os.environ, **LOCAL, **environment}
    process = subprocess.Popen(
        [str(word) for word in words],
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    said: dict[str, str] = {}
    readers = [
        threading.Thread(target=lambda n=n, s=s: said.__setitem__(n, s.read()), daemon=True)
        for n, s in (("stdout", process.stdout), ("stderr", process.stderr))
    ]
    try:
        for reader in readers:
            reader.start()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for reader in readers:
            reader.join(10)
    return Ended(process.returncode, None, said.get("stdout", ""), said.get("stderr", ""))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, below those that connections go out from."""
    chooser = random.Random(os.urandom(8))
    while True:
        port = chooser.randrange(20_000, 32_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


LOCAL = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} if sys.platform == "linux" else {}
"""Variables that keep the processes' talk on this machine."""


def _launched_as(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "GROUP_RANK": "0",
        "ROLE_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": f"test-{port}",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        **LOCAL,
    }


def _be_a_rank(
    stem: Path,
    variables: Mapping[str, str],
    function: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{stem}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    multiprocessing.set_start_method(None, force=True)  # or its workers would be as slow as ranks
    import torch

    torch.set_num_threads(1)
    value = function(*arguments)
    Path(f"{stem}.answer").write_bytes(pickle.dumps(value))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
