"""torch's launcher, with our signals, our exit codes, and no restart where one cannot help."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed import run as torch_run
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher import api as torch_launcher

from luthier import console
from luthier.errors import LaunchError

FINAL = frozenset({2, 3, 28, 65, 75})
"""Exit codes of a process that would end the same way again: see `errors.py`."""

LOST = 70
"""The exit code where a process was killed, but not by us."""

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that ask a run to end; the last is what SLURM can be told to send ahead of the end."""

PATIENCE = 2
"""So many of them are passed on; the next one kills the processes."""


def run_agent(words: Sequence[str]) -> int:
    """Runs torch's launcher in this process; the exit code of the first process that failed, or 0.

    Raises:
        LaunchError: if the machines do not find each other.
    """
    theirs = torch_launcher.LocalElasticAgent
    handlers = {number: signal.getsignal(number) for number in STOPS}
    torch_launcher.LocalElasticAgent = Agent  # type: ignore[misc]
    Agent.signals = 0
    try:
        torch_run.run(torch_run.parse_args(list(words)))  # type: ignore[no-untyped-call]
    except ChildFailedError as problem:
        first = _first(problem.failures)
        codes = [first.exitcode, *(each.exitcode for each in problem.failures.values())]
        chosen = next((code for code in codes if code > 0), None)
        if first.exitcode > 0:
            return int(first.exitcode)
        if Agent.signals:
            return int(128 + Agent.last if chosen is None else chosen)
        console.error(f"{_describe(first)}; the others were ended")
        return LOST
    except SignalException as problem:
        return 128 + int(problem.sigval)
    except (RendezvousError, DistNetworkError, DistStoreError) as problem:
        reason = str(problem.__cause__ or problem).partition("\n")[0].rstrip(".")
        raise LaunchError(
            f"the processes of this run do not find each other: {reason}. Look whether "
            "MASTER_ADDR and MASTER_PORT (or RDZV_ENDPOINT) are those of machine 0, and open to "
            "the others."
        ) from problem
    finally:
        torch_launcher.LocalElasticAgent = theirs  # type: ignore[misc]
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)
    return 0


class Agent(LocalElasticAgent):
    """Starts the processes of this machine and looks after them."""

    signals = 0  # how many signals to end have come
    last = signal.SIGTERM  # the last of them

    def _start_workers(self, worker_group: Any) -> dict[int, Any]:
        before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGQUIT)}
        started: dict[int, Any] = super()._start_workers(worker_group)
        # torch has set its own handlers, which leave the processes half a minute
        for number, handler in before.items():
            is_ours = number in STOPS and handler is not signal.SIG_IGN  # as nohup sets it
            signal.signal(number, self._pass_on if is_ours else handler)
        if Agent.signals:  # while they were being started
            self._send(Agent.last)
        return started

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        left = self._remaining_restarts
        if not result.is_failed():
            return result
        if Agent.signals or any(each.exitcode in FINAL for each in result.failures.values()):
            self._remaining_restarts = 0
        elif left:
            most = worker_group.spec.max_restarts
            console.warn(
                f"{_describe(_first(result.failures))}; all processes are started again "
                f"({most - left + 1} of {most})"
            )
        return result

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        Agent.signals, Agent.last = Agent.signals + 1, signal.Signals(number)
        if Agent.signals > PATIENCE:
            self._send(signal.SIGKILL)
        else:
            # before a run listens, a process would end by any other
            self._send(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        """To the processes themselves, not to those that they have started."""
        if isinstance(self._pcontext, SubprocessContext):
            for handler in self._pcontext.subprocess_handlers.values():
                handler.proc.send_signal(number)


def _first(failures: Mapping[int, ProcessFailure]) -> ProcessFailure:
    return min(failures.values(), key=lambda each: each.timestamp)


def _describe(failure: ProcessFailure) -> str:
    process = f"process {failure.local_rank} of this machine ({failure.pid})"
    if failure.exitcode < 0:
        return f"{process} was killed by {signal.Signals(-failure.exitcode).name}"
    return f"{process} ended with code {failure.exitcode}"
