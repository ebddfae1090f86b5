"""Metrics of a stage, added up over micro-batches, steps and ranks, and divided once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from luthier.processes.ranks import gather_objects
from luthier.stages.stage import Sum


class MetricSums:
    """Sums and counts by name, added where they lie: nothing waits for a device before `means`.

    Args:
        names: that are there from the start, so that every rank has them.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._sums: dict[str, tuple[Any, Any]] = dict.fromkeys(names, (0, 0))

    def add(self, metrics: Mapping[str, Sum]) -> None:
        """Adds those of a micro-batch, or of a step."""
        for name, (total, count) in metrics.items():
            sums, counts = self._sums.get(name, (0, 0))
            self._sums[name] = (sums + total, counts + count)

    def held(self) -> dict[str, Sum]:
        """The sums so far of this rank."""
        return dict(self._sums)

    def state(self) -> dict[str, list[float]]:
        """The sums of all ranks, as a checkpoint keeps them; every rank must call it."""
        own = {name: [float(total), float(count)] for name, (total, count) in self._sums.items()}
        ranks = gather_objects(own)
        names = dict.fromkeys(name for sums in ranks for name in sums)
        return {
            name: [math.fsum(sums[name][part] for sums in ranks if name in sums) for part in (0, 1)]
            for name in names
        }

    def means(self) -> dict[str, float]:
        """The mean of all ranks by name, but of what was never counted; every rank must call it."""
        return {name: total / count for name, (total, count) in self.state().items() if count}
