"""Where a number that is none came from: a weight, a micro-batch, a row, a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier.batching.batch import MicroBatch, Step
from luthier.batching.split import rebuild
from luthier.modeling.device import RandomState, is_out_of_memory
from luthier.processes.ranks import rank

MOST_ROWS, MOST_NAMES = 8, 3
"""How many rows and parameters are named; the rest is counted."""

MOST_ALONE = 64
"""Examples of a micro-batch that are computed alone to find the one that is to blame."""

Compute = Callable[[MicroBatch], Tensor]
"""The loss of a micro-batch on this rank, with gradient and without any exchange."""


@dataclass(frozen=True)
class Finding:
    """What one rank knows of a step whose gradient is not finite."""

    rank: int  # which
    weight: str = ""  # the first parameter that was not finite before the step; empty if all were
    loss: float | None = None  # the first loss that is not finite; None if all are
    micro_batch: int = 0  # the place of the micro-batch at fault, from 1; 0 if it is not known
    num_micro_batches: int = 0  # of the step on this rank
    gradients: tuple[str, ...] = ()  # parameters whose gradient is not finite
    rows: tuple[int, ...] = ()  # of the micro-batch, or the step, or those that are to blame alone
    is_alone: bool = False  # whether computing the rows one by one has shown that it is these

    @property
    def is_seen(self) -> bool:
        """Whether this rank has anything to show."""
        return bool(self.weight or self.loss is not None or self.micro_batch)


@dataclass(frozen=True)
class Search:
    """What it takes to look for the cause on this rank."""

    model: nn.Module  # bare; its gradients are those of the step, and none when the search is over
    compute: Compute | None
    """Gives losses; None where ranks exchange something in every forward pass, so that none of them
    can compute anything again by itself."""
    pad_token_id: int  # fills padded batches
    share_prefixes: bool  # whether trees share them

    def find(self, step: Step, losses: Sequence[Tensor], random: RandomState) -> Finding:
        """Looks at the weights, at the losses, and at what each micro-batch gives when alone.

        `random` is where the generators stood when the step began; they stay as they are.
        """
        found = Finding(
            rank(),
            first_nonfinite(self.model),
            num_micro_batches=len(step.micro_batches),
            gradients=self._nonfinite_gradients(),
            rows=step.rows,
        )
        values = [each.item() for each in losses]
        for number, (value, batch) in enumerate(zip(values, step.micro_batches, strict=False)):
            if not math.isfinite(value):
                found = replace(found, loss=value, micro_batch=number + 1, rows=_rows(batch))
                break
        if found.weight or self.compute is None:
            return found
        before = RandomState.take(random.device)
        random.restore()
        try:
            return self._look_closer(step, found, self.compute)
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            return found
        finally:
            self.model.zero_grad()
            before.restore()

    def _look_closer(self, step: Step, found: Finding, compute: Compute) -> Finding:
        if not found.micro_batch:
            for number, micro_batch in enumerate(step.micro_batches):
                if names := self._spoiled_by(micro_batch, compute):
                    found = replace(
                        found, micro_batch=number + 1, rows=_rows(micro_batch), gradients=names
                    )
                    break
        if not found.micro_batch:
            return found
        whole = step.micro_batches[found.micro_batch - 1]
        if not 1 < len(whole.examples) <= MOST_ALONE:
            return found
        to_blame = []
        for example in whole.examples:
            alone = rebuild([example], whole, self.pad_token_id, share_prefixes=self.share_prefixes)
            if self._spoiled_by(alone, compute):
                to_blame.append(example.row)
        if 0 < len(to_blame) < len(whole.examples):
            found = replace(found, rows=tuple(to_blame), is_alone=True)
        return found

    def _spoiled_by(self, micro_batch: MicroBatch, compute: Compute) -> tuple[str, ...]:
        """The parameters whose gradient is not finite after this micro-batch, or `loss`."""
        self.model.zero_grad()
        loss = compute(micro_batch)
        loss.backward()  # type: ignore[no-untyped-call]
        names = self._nonfinite_gradients()
        return names or (() if bool(loss.isfinite()) else ("loss",))

    def _nonfinite_gradients(self) -> tuple[str, ...]:
        gradients = {
            name: each.grad for name, each in self.model.named_parameters() if each.grad is not None
        }
        if are_finite(gradients.values()):
            return ()
        return tuple(name for name, gradient in gradients.items() if not are_finite([gradient]))


def _rows(batch: MicroBatch) -> tuple[int, ...]:
    return tuple(example.row for example in batch.examples)


def describe(
    findings: Sequence[Finding], name_rows: Callable[[Sequence[int]], Sequence[str]]
) -> str:
    """The findings of all ranks, by rank, as lines of text; `name_rows` gives files and lines."""
    seen = [each for each in findings if each.is_seen] or list(findings[:1])
    many = len(findings) > 1
    return "\n".join(
        _describe(each, name_rows(each.rows[:MOST_ROWS]), of_many=many) for each in seen
    )


def _describe(found: Finding, rows: Sequence[str], *, of_many: bool) -> str:
    on_rank = f"rank {found.rank}: " if of_many else ""
    place = f"micro-batch {found.micro_batch} of {found.num_micro_batches}"
    if found.weight:
        what = f"the weights were not finite already: {found.weight}"
    elif found.loss is not None:
        what = f"the loss of {place} is {found.loss}"
    elif found.micro_batch:
        what = f"{place} has a finite loss and a gradient that is not: {_names(found.gradients)}"
    else:
        named = f": {_names(found.gradients)}" if found.gradients else ""
        what = f"the losses are finite and the gradient is not{named}"
    listed = "".join(f"\n    {row}" for row in rows)
    if len(found.rows) > len(rows):
        listed += f"\n    and {len(found.rows) - len(rows):,} more"
    of = "these rows, each of them alone" if found.is_alone else "rows of it"
    return f"  {on_rank}{what}\n  {on_rank}{of}:{listed}" if rows else f"  {on_rank}{what}"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of all tensors are finite; the host waits once for each device.

    The least and the largest number of a tensor are NaN where any is, and unlike a sum they never
    overflow. Of a tensor in parts, this rank's part is looked at.
    """
    worst: dict[torch.device, list[Tensor]] = {}
    for tensor in map(own_part, tensors):
        if tensor.numel() and tensor.is_floating_point():
            ends = tensor.detach().aminmax()  # on a CPU four times faster than a norm
            worst.setdefault(tensor.device, []).extend(end.float() for end in ends)
    return all(bool(torch.stack(each).isfinite().all()) for each in worst.values())


def own_part(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank: all of it, unless a strategy holds it in parts."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    # DeepSpeed's stage 3 leaves an empty tensor and hangs its part on it
    part: Tensor = getattr(tensor, "ds_tensor", tensor)
    return part


def first_nonfinite(model: nn.Module) -> str:
    """The first parameter that is not finite, and how much of it; empty if all are."""
    for name, tensor in model.named_parameters():
        part = own_part(tensor)
        if not are_finite([part]):
            wrong = ~part.detach().isfinite()
            kind = "NaN" if bool(part.detach().isnan().any()) else "infinite"
            return f"{name} ({int(wrong.sum()):,} of {part.numel():,} numbers, {kind})"
    return ""
