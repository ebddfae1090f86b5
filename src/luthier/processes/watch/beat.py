"""What a rank says of itself every second: that it lives, its step, where its main thread is."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, TypeAlias

State: TypeAlias = Literal["living", "done", "left", "failed"]

CUT_OFF = "cut off"
"""What a rank is doing whose exchange with the others has failed."""

MOST_FRAMES = 24
"""Of a stack, the innermost: a beat stays below two kilobytes."""


@dataclass(frozen=True)
class Beat:
    """One message of a rank. The stack names places in code, never values.

    Attributes:
        rank: whose it is.
        host: the machine's name.
        machine: the same for processes that see each other's ids, different otherwise.
        pid: the process's id there.
        count: how many beats this rank has made.
        step: the last step it has begun.
        doing: "starting", "training", "evaluating", "finishing" or "cut off".
        moves: how often it was seen to have got on: an event of the loop, or another stack.
        stack: where its main thread stands, outermost frame first.
        state: whether it works, is done, looks at the board no more, or has failed.
        error: why it failed, with the traceback.
    """

    rank: int
    host: str
    machine: str
    pid: int
    count: int
    step: int
    doing: str
    moves: int
    stack: tuple[str, ...]
    state: State = "living"
    error: str = ""

    def to_json(self) -> str:
        """The beat as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Beat:
        """A beat from its text."""
        values = json.loads(text)
        return cls(**values | {"stack": tuple(values["stack"])})


class Pulse:
    """Makes the beats of this rank; `mark` is for the main thread, `beat` for any."""

    def __init__(self, rank: int) -> None:
        self._rank, self._host, self._machine = rank, socket.gethostname(), this_machine()
        self._count = self._moves = self._marks = self._step = 0
        self._doing = "starting"
        self._seen: tuple[int, tuple[str, ...]] = (0, ())
        self._end: tuple[State, str, tuple[str, ...]] = ("living", "", ())

    @property
    def state(self) -> State:
        """Whether this rank works, is done, has left, or has failed."""
        return self._end[0]

    def mark(self, step: int, doing: str) -> None:
        """Notes that the loop has got on."""
        self._step, self._doing = step, doing
        self._marks += 1

    def cut_off(self, stack: tuple[str, ...]) -> None:
        """Notes that an exchange with the others has failed, and where."""
        self._doing = CUT_OFF
        self._end = ("living", "", stack)

    def end(self, state: State, error: str = "", stack: tuple[str, ...] = ()) -> None:
        """Notes that this rank's work is over; its stack is then the one given here, if any."""
        self._end = (state, error, stack)

    def beat(self) -> Beat:
        """How things stand now."""
        state, error, stack = self._end
        seen = (self._marks, stack or main_stack())
        self._moves += seen != self._seen
        self._seen = seen
        self._count += 1
        return Beat(
            self._rank,
            self._host,
            self._machine,
            os.getpid(),
            self._count,
            self._step,
            self._doing,
            self._moves,
            seen[1],
            state,
            error,
        )


def main_stack() -> tuple[str, ...]:
    """Where the main thread stands, outermost frame first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames: list[tuple[FrameType, int]] = []
    while frame is not None:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    return _described(reversed(frames), len(frames))


def stack_of(problem: BaseException) -> tuple[str, ...]:
    """Where an exception was raised, outermost frame first."""
    frames, traceback = [], problem.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    return _described(frames, len(frames))


def _described(frames: Iterable[tuple[FrameType, int]], count: int) -> tuple[str, ...]:
    shown = list(frames)[-MOST_FRAMES:]
    lines = [
        f"{_short(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}" for frame, line in shown
    ]
    left_out = [f"... {count - len(shown)} outer frames"] if count > len(shown) else []
    return (*left_out, *lines)


def _short(file: str) -> str:
    for root in ("/site-packages/", "/src/"):
        _, found, rest = file.replace(os.sep, "/").rpartition(root)
        if found:
            return rest
    return "/".join(Path(file).parts[-3:])


def this_machine() -> str:
    """The same text for all processes that see each other's process ids."""
    facts = [socket.gethostname()]
    if sys.platform == "linux":
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(facts)
