"""What this machine knows of the other ranks' processes on it: gone, stopped or running."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Literal, TypeAlias

import psutil

from luthier.processes.watch.beat import Beat, this_machine

Process: TypeAlias = Literal["running", "stopped", "gone"]

STATUSES: dict[str, Process] = {
    psutil.STATUS_ZOMBIE: "gone",
    psutil.STATUS_DEAD: "gone",
    psutil.STATUS_STOPPED: "stopped",
    psutil.STATUS_TRACING_STOP: "stopped",
}


class Neighbours:
    """Looks after the processes of ranks on the same machine."""

    def __init__(self) -> None:
        self._machine = this_machine()
        self._processes: dict[int, psutil.Process | None] = {}
        self._out_of_memory = _times_out_of_memory()

    def is_near(self, beat: Beat) -> bool:
        """Whether a rank's process is on this machine and can be seen from here."""
        return beat.machine == self._machine

    def state(self, beat: Beat) -> Process | None:
        """How a rank's process is; None where it cannot be seen from here."""
        if not self.is_near(beat):
            return None
        process = self._process(beat.pid)
        try:
            if process is None or not process.is_running():
                return "gone"
            return STATUSES.get(process.status(), "running")
        except psutil.NoSuchProcess:
            return "gone"
        except psutil.AccessDenied:
            return None

    def end(self, beat: Beat) -> None:
        """Kills a lost rank's process on this machine.

        One that was stopped would write to the run's folder when it is woken, beside the ranks
        that a restart has begun.
        """
        process = self._process(beat.pid) if self.is_near(beat) else None
        if process is not None:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has ended a process for want of memory since this was made."""
        return _times_out_of_memory() > self._out_of_memory

    def _process(self, pid: int) -> psutil.Process | None:
        if pid not in self._processes:
            try:
                self._processes[pid] = psutil.Process(pid)
            except psutil.NoSuchProcess:
                self._processes[pid] = None
        return self._processes[pid]


def _times_out_of_memory() -> int:
    if sys.platform != "linux":
        return 0
    for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0
