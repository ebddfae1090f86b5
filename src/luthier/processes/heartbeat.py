"""What a rank says of itself every second, and what this rank knows of the others by it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal, TypeAlias

import psutil

State: TypeAlias = Literal["living", "done", "left", "failed"]

Process: TypeAlias = Literal["running", "stopped", "gone"]

PROCESSES: dict[str, Process] = {
    psutil.STATUS_ZOMBIE: "gone",
    psutil.STATUS_DEAD: "gone",
    psutil.STATUS_STOPPED: "stopped",
    psutil.STATUS_TRACING_STOP: "stopped",
}

CUT_OFF = "cut off"
"""What a rank is doing whose exchange with the others has failed."""

MOST_FRAMES = 24
"""Of a stack, the innermost: a heartbeat stays below two kilobytes."""

CONFIRMED_S = 3.0
"""A process is gone for good when its last words have been looked for, or for so long in vain."""


@dataclass
class Heartbeat:
    """One message of a rank. The stack names places in code, never values.

    A rank keeps one of its own: its main thread marks there how far it is, and any thread may take
    a copy of how things stand.
    """

    rank: int  # whose it is
    host: str  # the machine's name
    machine: str  # the same for processes that see each other's ids, different otherwise
    pid: int  # the process's id there
    count: int = 0  # how many of them this rank has made
    step: int = 0  # the last step it has begun
    doing: str = "starting"  # "starting", "training", "evaluating", "finishing" or "cut off"
    moves: int = 0  # how often it was seen to have got on: an event of the loop, or another stack
    stack: tuple[str, ...] = ()  # where its main thread stands, outermost frame first
    state: State = "living"  # whether it works, is done, looks at the others no more, or has failed
    error: str = ""  # why it failed, with the traceback

    @classmethod
    def of(cls, rank: int) -> Heartbeat:
        return cls(rank, socket.gethostname(), this_machine(), os.getpid())

    def mark(self, step: int, doing: str) -> None:
        """Notes that the loop has got on."""
        self.step, self.doing = step, doing
        self.moves += 1

    def end(self, state: State, error: str = "") -> None:
        """Notes that this rank's work is over."""
        self.state, self.error = state, error

    def now(self, stack: tuple[str, ...] = ()) -> Heartbeat:
        """A copy of how things stand now, the main thread where it is or at a given `stack`."""
        stack = stack or main_stack()
        self.moves += stack != self.stack
        self.count, self.stack = self.count + 1, stack
        return replace(self)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Heartbeat:
        values = json.loads(text)
        return cls(**values | {"stack": tuple(values["stack"])})


def main_stack() -> tuple[str, ...]:
    """Where the main thread stands, outermost frame first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return _described([] if frame is None else [*traceback.walk_stack(frame)][::-1])


def stack_of(problem: BaseException) -> tuple[str, ...]:
    """Where an exception was raised, outermost frame first."""
    return _described([*traceback.walk_tb(problem.__traceback__)])


def _described(frames: list[tuple[FrameType, int]]) -> tuple[str, ...]:
    count = len(frames) - MOST_FRAMES
    lines = [f"... {count} outer frames"] if count > 0 else []
    for frame, line in frames[-MOST_FRAMES:]:
        file = frame.f_code.co_filename.replace(os.sep, "/")
        short = "/".join(Path(file).parts[-3:])
        for root in ("/src/", "/site-packages/"):
            short = file.rpartition(root)[2] if root in file else short
        lines.append(f"{short}:{line} {frame.f_code.co_name}")
    return tuple(lines)


def this_machine() -> str:
    """The same text for all processes that see each other's process ids."""
    facts = [socket.gethostname()]
    if sys.platform == "linux":
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(facts)


@dataclass(frozen=True)
class PeerStatus:
    """What this rank knows of another, by its own clock."""

    heartbeat: Heartbeat  # the last that came
    heard_s: float  # how long before the last look at the store it was new
    still_s: float  # how long the rank has not got on
    process: Process | None = None  # how its process is; None where it cannot be seen from here
    process_s: float = 0.0  # for how long its process has been so


class Peers:
    """The last heartbeat of each other rank, and when it was new; safe between threads.

    Ages are measured on a monotonic clock from when a rank's count was seen to change, so that
    the clocks of machines may differ as they like. The machine says how the processes beside this
    one are.
    """

    def __init__(self, rank: int, now: Callable[[], float] = time.monotonic) -> None:
        self._rank, self._now = rank, now
        self._heartbeats: dict[int, Heartbeat] = {}
        self._looked_from = self._looked_until = now()
        self._heard: dict[int, float] = {}
        self._moved: dict[int, float] = {}
        self._machine = this_machine()
        self._processes: dict[int, psutil.Process | None] = {}
        self._seen: dict[int, tuple[Process | None, float]] = {}
        self._lock = threading.Lock()

    def note(self, heartbeats: Mapping[int, Heartbeat], begun: float, ended: float) -> None:
        """Takes what was read from the store between two moments."""
        with self._lock:
            for rank, heartbeat in heartbeats.items():
                before = self._heartbeats.get(rank)
                if before is None or before.count != heartbeat.count:
                    self._heard[rank] = ended
                if before is None or before.moves != heartbeat.moves:
                    self._moved[rank] = ended
                self._heartbeats[rank] = heartbeat
            self._looked_from, self._looked_until = begun, ended

    def excuse(self, seconds: float) -> None:
        """Takes off every age a time in which this process did not run."""
        with self._lock:
            now = self._now()
            for times in (self._heard, self._moved):
                times.update({rank: min(time + seconds, now) for rank, time in times.items()})
            for rank, (process, since) in self._seen.items():
                self._seen[rank] = process, min(since + seconds, now)
            self._looked_until = min(self._looked_until + seconds, now)

    def silence_s(self) -> float:
        """How long the store has not been reached."""
        return self._now() - self._looked_until

    def anyone_is(self, *states: State) -> bool:
        """Whether a rank that was heard of said last that it is in one of these states."""
        with self._lock:
            return any(each.state in states for each in self._heartbeats.values())

    def all(self) -> dict[int, PeerStatus]:
        with self._lock:
            return {rank: self._status(rank, last) for rank, last in self._heartbeats.items()}

    def _status(self, rank: int, last: Heartbeat) -> PeerStatus:
        # with no news of anybody, nobody is older for it
        heard_s = max(self._looked_until - self._heard[rank], 0.0)
        still_s = max(self._looked_until - self._moved[rank], 0.0)
        if rank == self._rank:
            return PeerStatus(last, heard_s, still_s)
        process, now = self.process_of(last), self._now()
        if rank not in self._seen or self._seen[rank][0] != process:
            self._seen[rank] = process, now
        since = self._seen[rank][1]
        if process == "gone" and self._looked_from <= since and now - since <= CONFIRMED_S:
            process = "running"  # its last words may be in the store
        return PeerStatus(last, heard_s, still_s, process, now - since)

    def process_of(self, last: Heartbeat) -> Process | None:
        """How a rank's process is; None where it cannot be seen from here."""
        if last.machine != self._machine:
            return None
        try:
            if last.pid not in self._processes:
                self._processes[last.pid] = psutil.Process(last.pid)
            process = self._processes[last.pid]
            if process is None or not process.is_running():
                return "gone"
            return PROCESSES.get(process.status(), "running")
        except psutil.NoSuchProcess:
            self._processes.setdefault(last.pid, None)  # its number may be given to another
            return "gone"
        except psutil.AccessDenied:
            return None

    def kill(self, ranks: Iterable[int]) -> None:
        """Kills the processes of lost ranks on this machine.

        One that was stopped would write to the run's folder when it is woken, beside the ranks
        that a restart has begun.
        """
        for rank in ranks:
            last = self._heartbeats.get(rank)
            if last is not None and last.machine == self._machine:
                process = self._processes.get(last.pid)
                with contextlib.suppress(psutil.Error):
                    if process is not None:
                        process.kill()
