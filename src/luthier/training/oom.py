"""Memory that runs out: the step is computed again in smaller pieces, and so are later ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from luthier import console
from luthier.batching.batch import MicroBatch, Step
from luthier.batching.split import rebuild, split_micro_batches
from luthier.errors import OutOfMemory
from luthier.modeling.device import RandomState, is_out_of_memory, release
from luthier.processes.ranks import num_ranks, rank

T = TypeVar("T")


class OomHandler:
    """Computes micro-batches, and smaller ones where memory has run out.

    What a rank computes in smaller pieces is its own share of a step, so it needs to ask nobody:
    ranks exchange gradients in the last backward pass only, and wait there for whoever is late.
    That pass must not fail, since the others are in the exchange by then. So it is that of a
    micro-batch whose size was computed before, or of an idle one of one token behind the others.

    Args:
        can_retry: whether nothing else is exchanged within a step: one process, or DDP.
        exchanges: whether gradients are exchanged at all.
        pad_token_id: fills padded batches.
        suggest: what to say when nothing is computed again, see `suggestions.py`; given the tokens
            of the micro-batch and of its longest sequence, 0 where they are not known.

    Attributes:
        tokens: the most tokens that a micro-batch computes; None before memory has run out.
        share_prefixes: whether trees share prefixes.
        latest: the last step of training as it was computed; None before there is any.
    """

    def __init__(
        self,
        *,
        can_retry: bool,
        exchanges: bool,
        pad_token_id: int,
        suggest: Callable[[int, int], str],
    ) -> None:
        self.can_retry, self.exchanges = can_retry, exchanges
        self.pad_token_id, self.suggest = pad_token_id, suggest
        self.tokens: int | None = None
        self.share_prefixes = False
        self.latest: Step | None = None
        self._largest_computed = 0
        self._is_exchanging = False
        self._current: MicroBatch | None = None

    def restore(self, tokens_of_ranks: Sequence[int | None]) -> None:
        """Goes on with the limits in a checkpoint: this rank's, or the least of other ranks."""
        if len(tokens_of_ranks) == num_ranks():
            self.tokens = tokens_of_ranks[rank()]
        else:
            self.tokens = min((each for each in tokens_of_ranks if each is not None), default=None)
        if self.tokens is not None:
            console.info(
                f"micro-batches have {self.tokens:,} tokens at most, since memory ran out before"
            )

    def fit(self, step: Step) -> Step:
        """The step in micro-batches that are known to be small enough."""
        if self.tokens is None or all(map(self._fits, (*step.micro_batches, *step.measured))):
            return step
        return split_micro_batches(
            step, self.tokens, self.pad_token_id, share_prefixes=self.share_prefixes
        )

    def train(
        self, model: nn.Module, step: Step, device: torch.device, compute: Callable[[Step], T]
    ) -> T:
        """The result of a step, computed until memory is enough.

        The model, as it is wrapped, holds no gradient before. `compute` does all micro-batches,
        each inside of `computing`, the last one exchanging.

        Raises:
            OutOfMemory: when the pieces cannot be smaller, or ranks cannot compute anything anew.
        """
        random = RandomState.take(device)
        wrapped = model if isinstance(model, DistributedDataParallel) else None
        hook = None if wrapped is None else wrapped.register_forward_hook(self._end_forward)
        try:
            while True:
                self.latest = step = self.fit(step)
                try:
                    return compute(self._with_safe_end(step))
                except (RuntimeError, MemoryError) as problem:
                    if not is_out_of_memory(problem):
                        raise
                    said = str(problem).partition("\n")[0]
                # out of the handler, so that nothing holds the frames of the failed pass
                model.zero_grad()
                release(device)
                if wrapped is not None:
                    wrapped.require_forward_param_sync = False  # buffers were sent in that pass
                self._lower(said)
                random.restore()
        finally:
            if hook is not None:
                hook.remove()

    @contextmanager
    def computing(self, micro_batch: MicroBatch) -> Iterator[None]:
        """Around the forward and backward pass of a micro-batch; an idle one draws no numbers."""
        self._current = micro_batch
        is_idle = not micro_batch.num_tokens
        with torch.random.fork_rng(_devices()) if is_idle else nullcontext():
            yield
        self._largest_computed = max(self._largest_computed, micro_batch.num_computed)
        self._current, self._is_exchanging = None, False

    def _end_forward(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """From the end of the last forward pass on, DDP expects the exchange of gradients."""
        self._is_exchanging = bool(model.require_backward_grad_sync)

    def each(self, step: Step, compute: Callable[[MicroBatch], T]) -> Iterator[T]:
        """What comes out of each micro-batch without gradient, none of which depends on another.

        Raises:
            OutOfMemory: as `train` does.
        """
        waiting = deque(self.fit(step).micro_batches)
        while waiting:
            self._current = waiting.popleft()
            try:
                result = compute(self._current)
            except (RuntimeError, MemoryError) as problem:
                if not is_out_of_memory(problem):
                    raise
                said = str(problem).partition("\n")[0]
            else:
                yield result
                continue
            failed = self._current
            release(failed.input_ids.device)
            self._lower(said)
            pieces = self.fit(replace(step, micro_batches=(failed,)))
            waiting.extendleft(reversed(pieces.micro_batches))

    def _fits(self, micro_batch: MicroBatch) -> bool:
        assert self.tokens is not None
        return micro_batch.num_computed <= self.tokens or len(micro_batch.examples) < 2

    def _with_safe_end(self, step: Step) -> Step:
        """The step with an idle micro-batch at its end, if the last one might fail."""
        if not (self.exchanges and self.can_retry):
            return step
        *others, last = [each.num_computed for each in step.micro_batches]
        if last <= max([self._largest_computed, *others]):
            return step
        idle = rebuild([], step.micro_batches[-1], self.pad_token_id, share_prefixes=False)
        return replace(step, micro_batches=(*step.micro_batches, idle))

    def _lower(self, said: str) -> None:
        """Halves the most tokens of a micro-batch, from those that were too many."""
        failed, self._current = self._current, None
        where = f"rank {rank()} has run out of memory" if num_ranks() > 1 else "memory has run out"
        if failed is None:
            raise OutOfMemory(f"{where}: {said}\n{self.suggest(0, 0)}")
        where += f" in a micro-batch of {failed.num_computed:,} tokens"
        is_single = len(failed.examples) < 2
        longest = int(failed.depths().max()) + 1
        if self._is_exchanging or not self.can_retry:
            raise OutOfMemory(
                f"{where}, in which ranks wait for each other: no rank can compute it again alone. "
                f"{said}\n{self.suggest(failed.num_computed, longest)}"
            )
        if is_single:
            raise OutOfMemory(
                f"{where}, which is one example and cannot be cut. {said}\n"
                + self.suggest(failed.num_computed, longest)
            )
        self.tokens = max(min(failed.num_computed, self.tokens or failed.num_computed) // 2, 1)
        console.warn(
            f"{where}; from here on they have {self.tokens:,} at most, with the same result. Set "
            f"tokens_per_micro_batch: {self.tokens} to have it so from the start.",
            on_every_rank=True,
        )


def _devices() -> list[int]:
    return [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
