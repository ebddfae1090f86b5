"""How a process ends at once: its last words said, whatever its main thread waits for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

LAST_WORDS_S = 5.0
"""How long the last words may take: a full pipe that nobody reads must not hold a process."""

TERMINATION_S = 5.0
"""How long a rank that is told to end looks for a lost one first, whose log would be lost too."""


def end_process(exit_code: int, last_words: str, linger_s: float = 0.0) -> NoReturn:
    """Ends this process and the workers it has started; no cleaning up, nothing waited for.

    Args:
        exit_code: of the process.
        last_words: for standard error.
        linger_s: how long to stay after them.
    """
    speaking = threading.Thread(target=_say, args=(last_words,), daemon=True)
    speaking.start()
    speaking.join(LAST_WORDS_S)
    time.sleep(linger_s)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(exit_code)


def _say(text: str) -> None:
    # not through sys.stderr alone, whose lock the main thread may hold
    file = 2
    with contextlib.suppress(OSError):
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(file, data) :]
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()


class Terminations:
    """SIGTERM, where nobody else hears it: a launcher sends it to the ranks that are left.

    It ends the process as it does by default, only a moment later, so that the watch can say which
    rank is lost. A handler of the run's own is left in place.

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
        """Gives the signal back its default."""
        if self._is_ours and signal.getsignal(signal.SIGTERM) == self._terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:  # not in a worker that was forked
            self.was_asked = True
            time.sleep(TERMINATION_S)
            if self.is_ending:
                time.sleep(LAST_WORDS_S)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
