"""The tensors of a micro-batch, and the micro-batches of a step."""

# B rows, T tokens of a row, N reads (positions that predict a learned token), S sequences
# R real tokens of all sequences, one sequence after the other

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.example import WEIGHT, Example
from luthier.records import Segment

Integers: TypeAlias = NDArray[np.integer[Any]]

MISSING = {WEIGHT: 1.0}
"""What stands where an example lacks a number that others of its micro-batch have; else NaN."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes, and where the loss reads from it.

    A padded batch has an `attention_mask`; a token tree is one row (B = 1) and has
    `position_ids` and `segments` in its place.
    """

    input_ids: Tensor  # (B, T) int64
    sources: Tensor
    """(N,) int64, positions in the flattened (B * T) whose hidden state predicts a learned token. A
    tree's source may be read several times, once for each child."""
    targets: Tensor  # (N,) int64, the token each source has to predict
    sequences: Tensor  # (N,) int64, which sequence of the micro-batch each read belongs to
    ends: Tensor  # (S,) int64, the flattened position of the last token of each sequence
    num_tokens: int
    """Tokens of all sequences, padding not counted and shared prefixes counted as often as they
    occur."""
    attention_mask: Tensor | None = None  # (B, T) int64, 1 on real tokens; None for a tree
    position_ids: Tensor | None = None
    """(B, T) int64, the depth of each token of a tree; None for a padded batch."""
    segments: tuple[Segment, ...] = ()  # of a tree, parents before children
    examples: tuple[Example, ...] = ()
    """What it was built of; none in an idle one. Their sequences are numbered in order."""
    owners: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    """(S,) int64, the place among `examples` of the one that each sequence belongs to."""
    token_numbers: Mapping[str, Tensor] = field(default_factory=dict)
    """By name (N,) float32, the number of each read's target; `weight` is there only where some
    loss does not count once."""
    sequence_numbers: Mapping[str, Tensor] = field(default_factory=dict)  # by name (S,) float32
    step_numbers: Mapping[str, float] = field(default_factory=dict)
    """By name a mean over the whole step, where its stage has read it first."""
    against: Any = None  # distributions of the reads by a reference, where its stage asks for them

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
        for name in ("token_numbers", "sequence_numbers"):
            moved[name] = {key: move(value) for key, value in getattr(self, name).items()}
        return replace(self, **moved)


def join(examples: Sequence[Example]) -> tuple[Integers, Integers, Integers, Integers]:
    """The sequences of at least one example, one after the other.

    Tokens and labels, both (R,) int64; the length and the owner of each sequence, (S,) int64.
    """
    ids_R = np.concatenate([each.input_ids for each in examples], dtype=np.int64)
    labels_R = np.concatenate([each.labels for each in examples], dtype=np.int64)
    lengths = [each.sequence_lengths for each in examples]
    lengths_S = np.concatenate(lengths, dtype=np.int64)
    owners_S = np.repeat(np.arange(len(examples)), [len(each) for each in lengths])
    assert lengths_S.all(), "a sequence has a token at least"
    assert labels_R.shape == ids_R.shape, "as many labels as tokens"
    assert lengths_S.sum() == len(ids_R), "the sequences are the example"
    return ids_R, labels_R, lengths_S, owners_S


def join_numbers(
    examples: Sequence[Example],
    kind: Literal["token_numbers", "sequence_numbers"],
    places: Integers | slice = slice(None),
) -> dict[str, Tensor]:
    """The named numbers of examples as a micro-batch holds them; no `weight` where each is one.

    They are float32, of tokens at `places` in what `join` gives, or of all sequences.
    """
    found: dict[str, Tensor] = {}
    held: list[Mapping[str, Any]] = [getattr(each, kind) for each in examples]
    for name in {name for each in held for name in each}:
        missing = MISSING.get(name, np.nan)
        parts = [
            numbers.get(name)
            if name in numbers
            else [missing] * len(each.input_ids if kind == "token_numbers" else each.sequences())
            for each, numbers in zip(examples, held, strict=True)
        ]
        numbers_N = np.concatenate(parts, dtype=np.float32)[places]  # type: ignore[arg-type]
        if name != WEIGHT or not (numbers_N == 1).all():
            found[name] = torch.from_numpy(numbers_N)
    return found


def naming(batch: MicroBatch, names: Iterable[str]) -> MicroBatch:
    """An idle micro-batch with the names of numbers that those with examples have."""
    empty = {name: torch.zeros(0) for name in names if name != WEIGHT}
    return replace(batch, token_numbers={**empty, **batch.token_numbers})


@dataclass(frozen=True)
class Step:
    """One rank's share of an optimizer step."""

    micro_batches: tuple[MicroBatch, ...]  # in the order in which they are computed
    num_units: int  # what the loss is divided by, of all ranks together
    num_tokens: int  # real tokens of all ranks together
    num_examples: int  # examples of all ranks together, a packed one counted once
    measured: tuple[MicroBatch, ...] = ()
    """Micro-batches that are read before the step is learned, and not learned; empty where those of
    the step itself are."""

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers in the data set of this rank's rows, each once."""
        found = (example.row for batch in self.micro_batches for example in batch.examples)
        return tuple(dict.fromkeys(found))

    @property
    def num_computed(self) -> int:
        """Tokens that go through this rank's model; see `MicroBatch.num_computed`."""
        return sum(micro_batch.num_computed for micro_batch in self.micro_batches)

    def pin_memory(self) -> Step:
        """The same step in page-locked memory (called by torch's loader)."""
        pinned, measured = (
            tuple(micro_batch.pin_memory() for micro_batch in each)
            for each in (self.micro_batches, self.measured)
        )
        return replace(self, micro_batches=pinned, measured=measured)
