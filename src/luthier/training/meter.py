"""How fast tokens are computed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Speed(NamedTuple):
    """What was done a second: `tokens` of all ranks, floating-point operations of one."""

    tokens: float
    flops: float


class Meter:
    """Tokens and operations a second between two readings, pauses left out.

    Args:
        now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since = now()
        self._tokens, self._flops = 0, 0.0
        self._paused_s = 0.0

    def count(self, tokens: int, flops: float = 0.0) -> None:
        """Adds what was computed."""
        self._tokens += tokens
        self._flops += flops

    def read(self) -> Speed:
        """The speed since the last reading; a new reading begins."""
        now = self._now()
        seconds = max(now - self._since - self._paused_s, 1e-9)
        speed = Speed(self._tokens / seconds, self._flops / seconds)
        self._since, self._tokens, self._flops, self._paused_s = now, 0, 0.0, 0.0
        return speed

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent inside."""
        begun = self._now()
        try:
            yield
        finally:
            self._paused_s += self._now() - begun
