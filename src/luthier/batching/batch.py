"""The tensors of a micro-batch, and the micro-batches of a step."""

# B rows, T tokens of the longest row, N reads (positions that predict a learned token)

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes, and where the loss reads from it.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, 1 on real tokens.
        sources: (N,) int64, positions in the flattened (B * T) whose hidden state predicts a
            learned token.
        targets: (N,) int64, the token each source has to predict.
        num_tokens: real tokens, padding not counted.
    """

    input_ids: Tensor
    attention_mask: Tensor
    sources: Tensor
    targets: Tensor
    num_tokens: int

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch with its tensors on `device`."""
        return MicroBatch(
            self.input_ids.to(device, non_blocking=True),
            self.attention_mask.to(device, non_blocking=True),
            self.sources.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.num_tokens,
        )

    def pin_memory(self) -> MicroBatch:
        """The same micro-batch in page-locked memory (called by torch's loader)."""
        return MicroBatch(
            self.input_ids.pin_memory(),
            self.attention_mask.pin_memory(),
            self.sources.pin_memory(),
            self.targets.pin_memory(),
            self.num_tokens,
        )


@dataclass(frozen=True)
class Step:
    """One rank's share of an optimizer step.

    Attributes:
        micro_batches: in the order in which they are computed.
        num_units: what the loss is divided by, of all ranks together.
        num_tokens: real tokens of all ranks together.
        num_examples: examples of all ranks together.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_units: int
    num_tokens: int
    num_examples: int

    def pin_memory(self) -> Step:
        """The same step in page-locked memory (called by torch's loader)."""
        pinned = tuple(micro_batch.pin_memory() for micro_batch in self.micro_batches)
        return Step(pinned, self.num_units, self.num_tokens, self.num_examples)
