"""The tensors of a micro-batch, and the micro-batches of a step."""

# B rows, T tokens of a row, N reads (positions that predict a learned token), S sequences

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from luthier.records import Segment


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes, and where the loss reads from it.

    A rectangle of padded rows has an `attention_mask`; a token tree is one row (B = 1) and has
    `position_ids` and `segments` in its place.

    Attributes:
        input_ids: (B, T) int64.
        sources: (N,) int64, positions in the flattened (B * T) whose hidden state predicts a
            learned token. A tree's source may be read several times, once for each child.
        targets: (N,) int64, the token each source has to predict.
        sequences: (N,) int64, which sequence of the micro-batch each read belongs to.
        ends: (S,) int64, the flattened position of the last token of each sequence.
        num_tokens: tokens of all sequences, padding not counted and shared prefixes counted as
            often as they occur.
        attention_mask: (B, T) int64, 1 on real tokens; None for a tree.
        position_ids: (B, T) int64, the depth of each token of a tree; None for a rectangle.
        segments: of a tree, parents before children; empty for a rectangle.
        weights: (N,) float32, how much the loss of each read counts; None where each counts once.
    """

    input_ids: Tensor
    sources: Tensor
    targets: Tensor
    sequences: Tensor
    ends: Tensor
    num_tokens: int
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    segments: tuple[Segment, ...] = ()
    weights: Tensor | None = None

    @property
    def num_computed(self) -> int:
        """Tokens that go through the model: padding counts, a shared prefix counts once."""
        return self.input_ids.numel()

    def depths(self) -> Tensor:
        """(M,) int64, the position of each real token in its sequence, 0 for the first."""
        if self.attention_mask is None:
            assert self.position_ids is not None
            return self.position_ids.flatten()
        return self.attention_mask.cumsum(dim=1)[self.attention_mask.bool()] - 1

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> MicroBatch:
        """The same micro-batch in page-locked memory (called by torch's loader)."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> MicroBatch:
        moved: dict[str, Any] = {
            each.name: move(value)
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Step:
    """One rank's share of an optimizer step.

    Attributes:
        micro_batches: in the order in which they are computed.
        num_units: what the loss is divided by, of all ranks together.
        num_tokens: real tokens of all ranks together.
        num_examples: examples of all ranks together.
        rows: for each micro-batch, the number in the data set of the row of each sequence.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_units: int
    num_tokens: int
    num_examples: int
    rows: tuple[tuple[int, ...], ...] = ()

    @property
    def num_computed(self) -> int:
        """Tokens that go through this rank's model; see `MicroBatch.num_computed`."""
        return sum(micro_batch.num_computed for micro_batch in self.micro_batches)

    def pin_memory(self) -> Step:
        """The same step in page-locked memory (called by torch's loader)."""
        pinned = tuple(micro_batch.pin_memory() for micro_batch in self.micro_batches)
        return replace(self, micro_batches=pinned)
