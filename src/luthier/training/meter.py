"""How fast tokens are computed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Meter:
    """Tokens per second between two readings, pauses left out.

    Args:
        now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since = now()
        self._tokens = 0
        self._paused_s = 0.0

    def count(self, tokens: int) -> None:
        """Adds tokens that were computed."""
        self._tokens += tokens

    def rate(self) -> float:
        """Tokens per second since the last reading; a new reading begins."""
        now = self._now()
        rate = self._tokens / max(now - self._since - self._paused_s, 1e-9)
        self._since, self._tokens, self._paused_s = now, 0, 0.0
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent inside."""
        begun = self._now()
        try:
            yield
        finally:
            self._paused_s += self._now() - begun
