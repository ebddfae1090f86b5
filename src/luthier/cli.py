"""The first word picks a command; only that command is imported."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from luthier import console
from luthier.commands.help import commands, start, unknown_command
from luthier.errors import LuthierError, Stopped
from luthier.secrecy import guard

INTERRUPTED = 130

INTERNAL = 70
"""A mistake of ours, or something that nobody thought of; the traceback says where."""

STILL_HERE_S, DROPPED_S = 2.0, 0.05
"""Seconds from a KeyboardInterrupt that had no effect, or that was dropped, to the next."""

COMMON_WAIT_S = 3.0
"""How long a process lets the first one say what all of them found."""

OWN_WAIT_S = 15.0
"""How long it waits to be ended before it says what perhaps it alone has found."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0, that of the error (see `errors.py`), 130 after Ctrl-C, or 70 for an error
        that is none of ours.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    word = words[0] if words else "help"
    if word in ("-h", "--help"):
        word = "help"
    elif word in ("-V", "--version"):
        word = "version"
    guard(sys.stderr, sys.stdout if word != "chat" else None)
    with _Interrupts(repeats=word == "train") as interrupts:
        try:
            if word not in commands():
                console.error(unknown_command(word))
                return LuthierError.exit_code
            code = start(word, words[1:])
            sys.stdout.flush()
            return code
        except LuthierError as problem:
            _tell(problem)
            return problem.exit_code
        except KeyboardInterrupt:
            _tell_interrupted()
            return INTERRUPTED
        except BrokenPipeError:
            # the reader of a pipe, such as `head`, has gone; Python would complain again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception:
            if not interrupts.was_asked:
                traceback.print_exc()
                return INTERNAL
            _tell_interrupted()
            return INTERRUPTED


def _tell(problem: LuthierError) -> None:
    """Says why the run ends: the first of its processes for all, as far as they agree.

    The others wait meanwhile: their end makes a launcher end the first one, which may not have
    spoken. If it has, it is them that the launcher ends here.
    """
    if console.is_main_process():
        say = console.info if isinstance(problem, Stopped) else console.error
        say(str(problem))
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: os._exit(problem.exit_code))
    time.sleep(COMMON_WAIT_S if problem.is_common else OWN_WAIT_S)
    if not problem.is_common:
        console.error(f"(rank {os.environ['RANK']}) {problem}")


def _tell_interrupted() -> None:
    if console.is_main_process():
        console.error("interrupted")


class _Interrupts:
    """Remembers that Ctrl-C was pressed while a `with` block runs.

    A KeyboardInterrupt can be lost. In a destructor, where Python drops exceptions, it is raised
    again a moment later. Where a library catches everything, while it looks what the machine has,
    it is raised again if `repeats` is set, which is nothing for commands that go on after one.
    Under the error of a worker process that was interrupted as well, `was_asked` tells what really
    happened.
    """

    def __init__(self, *, repeats: bool = False) -> None:
        self.was_asked = False
        self._repeats = repeats
        self._is_ours = False
        self._is_again = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> _Interrupts:
        self._dropped = sys.unraisablehook
        self._is_ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._is_ours:
            signal.signal(signal.SIGINT, self._interrupt)
            sys.unraisablehook = self._drop
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_ours:
            if self._timer is not None:
                self._timer.cancel()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = self._dropped

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        is_on_its_way = self._is_again and isinstance(sys.exc_info()[1], KeyboardInterrupt)
        self.was_asked, self._is_again = True, False
        if self._repeats:
            self._ask_again(STILL_HERE_S)
        if not is_on_its_way:
            raise KeyboardInterrupt

    def _drop(self, dropped: Any) -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            self._dropped(dropped)
            return
        self._ask_again(DROPPED_S)

    def _ask_again(self, after_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(after_s, self._send, (os.getpid(),))
        self._timer.daemon = True
        self._timer.start()

    def _send(self, pid: int) -> None:
        if os.getpid() == pid and self._is_ours:
            self._is_again = True
            os.kill(pid, signal.SIGINT)
