"""A loss that stands out from those logged before it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

WINDOW, FEWEST = 50, 20
"""Logged losses that are looked back on, and how many there have to be."""

MADS, SHARE = 8.0, 0.3
"""How far above the median a spike is: so many deviations, and so much of the median."""

MAD_OF_NORMAL = 1.4826
"""What a median absolute deviation is multiplied by to be a normal distribution's sigma."""


class SpikeWatch:
    """Compares each logged loss with the median of those before it.

    A loss is a spike when it is 8 robust standard deviations and 30 % above the median of the last
    50. Losses that fall, as they do at first, are never above it; before 20 are known nothing is
    said. When the loss stays up, only its first value is told.

    Args:
        losses: that were logged before.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._losses: deque[float] = deque(losses, maxlen=WINDOW)
        self._is_up = False

    @property
    def losses(self) -> list[float]:
        """The last ones that are looked back on."""
        return list(self._losses)

    def see(self, loss: float) -> float | None:
        """Takes a logged loss.

        Returns:
            The median it stands out from; None if it does not.
        """
        if not math.isfinite(loss):
            return None
        usual = self._limit()
        self._losses.append(loss)
        if usual is None or loss <= usual[1]:
            self._is_up = False
            return None
        was_up, self._is_up = self._is_up, True
        return None if was_up else usual[0]

    def _limit(self) -> tuple[float, float] | None:
        if len(self._losses) < FEWEST:
            return None
        middle = median(self._losses)
        deviation = MAD_OF_NORMAL * median(abs(each - middle) for each in self._losses)
        return middle, middle + max(MADS * deviation, SHARE * abs(middle))
