"""What is measured of a run: metrics of the stage as sums, tokens, and how fast they go."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from typing import TYPE_CHECKING, Any

import torch

from luthier.batching.batch import Step
from luthier.processes.ranks import gather_objects

if TYPE_CHECKING:
    from luthier.stages.stage import Sum


EXTREMES = {"min_": torch.minimum, "max_": torch.maximum}


class MetricSums:
    """Sums and counts by name, added where they lie: nothing waits for a device before `state`.

    Of a name that begins with `min_` or `max_` the extreme is kept, its count 1. `names` are there
    from the start, so that every rank has them.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._sums: dict[str, tuple[Any, Any]] = dict.fromkeys(names, (0, 0))

    def add(self, metrics: Mapping[str, Sum]) -> None:
        """Adds those of a micro-batch, or of a step."""
        for name, (total, count) in metrics.items():
            self._sums[name] = _together(name, self._sums.get(name, (0, 0)), (total, count))

    def held(self) -> dict[str, Sum]:
        """The sums so far of this rank."""
        return dict(self._sums)

    def state(self) -> dict[str, list[float]]:
        """The sums of all ranks, as a checkpoint keeps them; every rank must call it."""
        own = {name: [float(total), float(count)] for name, (total, count) in self._sums.items()}
        ranks = gather_objects(own)
        names = dict.fromkeys(name for sums in ranks for name in sums)
        found: dict[str, list[float]] = {}
        for name in names:
            parts = [sums[name] for sums in ranks if name in sums]
            if name[:4] in EXTREMES:
                parts = [[float(each) for each in reduce(partial(_together, name), parts)]]
            found[name] = [math.fsum(part) for part in zip(*parts, strict=True)]
        return found

    def means(self) -> dict[str, float]:
        """The mean of all ranks by name, but of what was never counted; every rank must call it."""
        return {name: total / count for name, (total, count) in self.state().items() if count}


def _together(name: str, one: Sequence[Any], other: Sequence[Any]) -> Sum:
    extreme = EXTREMES.get(name[:4])
    if extreme is None:
        return one[0] + other[0], one[1] + other[1]
    counted = [torch.as_tensor(value) for value, count in (one, other) if count]
    return (reduce(extreme, counted), 1) if counted else (0, 0)


@dataclass
class Work:
    """What was computed, in sums over the steps of this process."""

    steps: int = 0  # optimizer updates
    examples: int = 0  # of all ranks together
    tokens: int = 0  # real tokens of the examples
    computed: int = 0  # tokens that went through the model; padding counts, shared prefixes once
    learned: int = 0  # positions that predict a learned token
    micro_batches: int = 0  # forward passes of one rank
    measured: int = 0  # prompts with other answers that were read before steps
    measured_cut: int = 0  # those that had no room for the whole answer

    def add(self, step: Step) -> None:
        """Counts this rank's share of a step."""
        self.steps += 1
        self.examples += step.num_examples
        self.tokens += sum(each.num_tokens for each in step.micro_batches)
        self.computed += sum(each.num_computed for each in step.micro_batches)
        self.learned += sum(each.targets.numel() for each in step.micro_batches)
        self.micro_batches += len(step.micro_batches)
        measured = [each for batch in step.measured for each in batch.examples]
        self.measured += len(measured)
        self.measured_cut += sum(each.num_cut > 0 for each in measured)

    def of_all_ranks(self) -> Work:
        """The same with the tokens of all ranks; every rank must call it."""
        names = ("tokens", "computed", "learned", "measured", "measured_cut")
        ranks = gather_objects([getattr(self, name) for name in names])
        sums = map(sum, zip(*ranks, strict=True))
        return replace(self, **dict(zip(names, sums, strict=True)))

    def metrics(self) -> dict[str, float]:
        """The numbers under the names of train_results.json."""
        return {
            "train_tokens": self.tokens,
            "train_tokens_computed": self.computed,
            "train_tokens_learned": self.learned,
            "train_micro_batches_per_step": round(self.micro_batches / max(self.steps, 1), 2),
        }

    def describe(self, layout: str) -> str:
        """One line of what was done: `... 88 % of them computed, 12 % shared (tree)`."""
        share = self.computed / max(self.tokens, 1)
        rest = f"{1 - share:.0%} shared" if share <= 1 else f"{share - 1:.0%} padding"
        cut = f"; of {self.measured:,} prompts with other answers {self.measured_cut:,} were cut"
        return (
            f"{self.tokens:,} real tokens, {self.learned:,} learned; {self.computed:,} computed "
            f"({share:.0%}, {rest}) in {self.micro_batches / max(self.steps, 1):.4g} "
            f"micro-batches a step, layout {layout}{cut if self.measured_cut else ''}"
        ).replace("%", " %")


class Meter:
    """Tokens and floating-point operations a second between two readings, pauses left out.

    Args:
        cost: asked once, gives the operations of a micro-batch by its depths and reads, or None
            where they are not known; see `modeling/flops.py`.
        peak: asked once, what the device can do in a second; None where that is not known.
        now: a clock in seconds.
    """

    def __init__(
        self,
        cost: Callable[[], Any] = lambda: None,
        peak: Callable[[], float | None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cost, self._peak, self._now = cache(cost), cache(peak), now
        self.restart(0.0)

    def restart(self, total_flops: float) -> None:
        """Begins to measure; all ranks have made `total_flops` before."""
        self._since = self._now()
        self._tokens, self._flops_before, self._paused_s = 0, total_flops, 0.0

    def flops(self, step: Step) -> float:
        """What this rank's share of a step needs; 0 where that is not known."""
        cost = self._cost()
        if cost is None:
            return 0.0
        batches = step.micro_batches
        return float(sum(cost.of(each.depths(), each.sources.numel()) for each in batches))

    def count(self, tokens: int) -> None:
        """Adds tokens that were computed."""
        self._tokens += tokens

    def read(self, total_flops: float, num_ranks: int) -> dict[str, float]:
        """The speed of all ranks since the last reading, as a log says it; a new reading begins."""
        with self.paused():  # a CPU's peak is measured the first time
            peak = None if self._cost() is None else self._peak()
        seconds = max(self._now() - self._since - self._paused_s, 1e-9)
        speed = {"tokens_per_second": round(self._tokens / seconds, 1)}
        if peak is not None:
            flops = (total_flops - self._flops_before) / num_ranks
            speed["mfu"] = round(flops / seconds / peak, 4)
        self.restart(total_flops)
        return speed

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent inside."""
        begun = self._now()
        try:
            yield
        finally:
            self._paused_s += self._now() - begun
