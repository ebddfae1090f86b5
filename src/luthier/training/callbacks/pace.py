"""When steps ended -> how long the rest will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

WINDOW = 100
"""Steps that the estimate looks back on; evaluations and checkpoints between them count."""


class Pace:
    """Measures the steps of this process only, so a resumed run starts with no false speed.

    Args:
        step: the last step that was done before.
        now: a clock in seconds.
    """

    def __init__(self, step: int, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._begun = now()
        self._ends: deque[tuple[int, float]] = deque([(step, self._begun)], maxlen=WINDOW + 1)

    def step_ended(self, step: int) -> None:
        """Notes that `step` has just ended."""
        self._ends.append((step, self._now()))

    def elapsed_s(self) -> float:
        """Seconds since this process began to train."""
        return self._now() - self._begun

    def remaining_s(self, total_steps: int) -> float | None:
        """Seconds until `total_steps` at the speed of the last steps; None before the first."""
        (first, begun), (last, ended) = self._ends[0], self._ends[-1]
        if last == first:
            return None
        return max(total_steps - last, 0) * (ended - begun) / (last - first)


def clock(seconds: float) -> str:
    """A duration as `0:01:23`, days before it when there are any."""
    return str(timedelta(seconds=int(seconds)))
