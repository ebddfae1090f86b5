"""Signals that ask a process to stop, heard while it works; and how it ends at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

ASKING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
"""Ctrl-C; what launchers and schedulers send; a closed terminal; and what SLURM can be told to send
ahead of the end."""

ONE_MOMENT_S = 2.0
"""Signals so close together are one: Ctrl-C reaches a process and its launcher, which sends on."""

PARTING_S = 120
"""Seconds that a worker lives on after a first SIGTERM."""

LAST_WORDS_S = 5.0
"""How long the last words may take: a full pipe that nobody reads must not hold a process."""

TERMINATION_S = 5.0
"""How long a rank that is told to end looks for a lost one first, whose log would be lost too."""


class Signals:
    """Hears signals while a `with` block runs, even when the main thread is held up in a library.

    Nothing happens at the first signal but that it is noted, and told; the main thread may look at
    `asked_by`. At a second one, or when `grace_s` have passed without a call of `answered`, the
    process gives up. Signals that were ignored before stay ignored, and outside of the main thread
    none is heard.

    Args:
        grace_s: seconds from the first signal to `answered`.
        tell: is called with the name of the first signal, on another thread.
        give_up: is called on that thread with the reason, to end the process; None for a process
            that is not ours to end: there the handlers from before are put back, and the signal is
            sent again.
    """

    def __init__(
        self,
        grace_s: float,
        tell: Callable[[str], None],
        give_up: Callable[[str], None] | None = None,
    ) -> None:
        self.asked_by: str | None = None
        self._grace_s, self._tell, self._give_up = grace_s, tell, give_up
        self._deadline: float | None = None
        self._first_at = 0.0
        self._has_given_up = False
        self._before: dict[int, Any] = {}
        self._wakeup_before: int | None = None

    def answered(self) -> None:
        """Says that what the first signal asked for is done now: only a second one hurries it."""
        self._deadline = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in ASKING:
            number = getattr(signal, name, None)
            before = None if number is None else signal.getsignal(number)
            is_free = before is signal.SIG_DFL or (name != "SIGUSR1" and callable(before))
            if number is not None and is_free:
                self._before[number] = before
        self._listening, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        for number in self._before:
            signal.signal(number, self._handle)
        _heard.append(self)
        self._thread = threading.Thread(target=self._listen, name="luthier-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        if self not in _heard:
            return
        _heard.remove(self)
        self._put_back()
        self._woken.close()
        self._thread.join()
        self._listening.close()

    def _put_back(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before)
        self._before = {}
        if self._wakeup_before is not None:
            signal.set_wakeup_fd(self._wakeup_before)
        self._wakeup_before = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # `give_up` ends the process itself, with its own exit code: Python may run the handler of
        # the very signal that made it give up only while it is at that
        if self._has_given_up and self._give_up is None:
            self._put_back()
            signal.raise_signal(number)

    # the other thread

    def _listen(self) -> None:
        while not self._has_given_up:
            deadline = self._deadline
            self._listening.settimeout(
                None if deadline is None else max(deadline - time.monotonic(), 0.001)
            )
            try:
                numbers = self._listening.recv(64)
            except TimeoutError:
                if self._deadline is not None:
                    self._end(f"nothing came to an end within {self._grace_s:g} s")
                continue
            if not numbers:
                return
            for number in numbers:
                if number in self._before:
                    self._note(number)

    def _note(self, number: int) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if self.asked_by is None:
            self._number, self._first_at = number, now
            self._deadline = now + self._grace_s
            self.asked_by = name
            self._tell(name)
        elif now > self._first_at + ONE_MOMENT_S:
            self._end(f"{name} came again")

    def _end(self, why: str) -> None:
        if self._has_given_up:
            return
        self._has_given_up = True
        if self._give_up is not None:
            self._give_up(why)
        else:
            os.kill(os.getpid(), self._number)


def let_first_pass(for_s: int = PARTING_S) -> None:
    """Makes a worker outlive the signals that ask the process it works for to stop.

    A terminal and a scheduler send them to all processes of a run, and the step that is computed
    still needs its workers. SIGTERM ends the worker the second time, and `for_s` whole seconds
    after the first: so long waits a parent in vain that ends its workers by it. The others are
    ignored.
    """
    _set_worker_handlers(for_s)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _numbers())


def _set_worker_handlers(for_s: int) -> None:
    def let_pass(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if hasattr(signal, "alarm"):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(for_s)

    signal.set_wakeup_fd(-1)
    for number in _numbers():
        signal.signal(number, let_pass if number == signal.SIGTERM else signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """Lets the signals wait in this thread, and in the processes that are forked by it meanwhile.

    Those get them when they call `let_first_pass`, not while they begin.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in ASKING if hasattr(signal, name)]


_heard: list[Signals] = []
"""The blocks that run now; in a forked process the first signals are let pass."""


def _in_forked_process() -> None:
    if _heard:
        _heard.clear()
        _set_worker_handlers(PARTING_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_process)


class LateTermination:
    """SIGTERM, where nobody else hears it: a launcher sends it to the ranks that are left.

    It ends the process as it does by default, only a moment later, so that the watchdog can say
    which rank is lost. A handler of the run's own is left in place.

    Attributes:
        was_asked: whether the signal has come.
        is_ending: set by who has found a lost rank, and ends this process itself.
    """

    def __init__(self) -> None:
        self.was_asked = self.is_ending = False
        self._pid = os.getpid()
        self._is_ours = False

    def start(self) -> None:
        """Begins to hear it; in a main thread only."""
        self._is_ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        )
        if self._is_ours:
            signal.signal(signal.SIGTERM, self._terminate)

    def stop(self) -> None:
        if self._is_ours and signal.getsignal(signal.SIGTERM) == self._terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:  # not in a worker that was forked
            self.was_asked = True
            time.sleep(TERMINATION_S)
            if self.is_ending:
                time.sleep(LAST_WORDS_S)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def end_process(exit_code: int, last_words: str, linger_s: float = 0.0) -> NoReturn:
    """Ends this process and the workers it has started; no cleaning up, nothing waited for.

    `last_words` go to standard error; it stays `linger_s` after them.
    """

    def speak() -> None:  # not through sys.stderr alone, whose lock the main thread may hold
        data = last_words.encode(errors="replace")
        with suppress(OSError):
            while data:
                data = data[os.write(2, data) :]
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()

    speaking = threading.Thread(target=speak, daemon=True)
    speaking.start()
    speaking.join(LAST_WORDS_S)
    time.sleep(linger_s)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(exit_code)
