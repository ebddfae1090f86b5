"""The order in which an epoch's examples come, the same as other trainers on transformers take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from accelerate.data_loader import SeedableRandomSampler
from transformers.trainer_pt_utils import LengthGroupedSampler


class SequentialOrder:
    """As the data set stands, every epoch."""

    def __init__(self, num_examples: int) -> None:
        self.num_examples = num_examples

    def __len__(self) -> int:
        return self.num_examples

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.num_examples))

    def set_epoch(self, epoch: int) -> None:
        """Nothing depends on the epoch."""


class ShuffledOrder:
    """The permutations of accelerate's `SeedableRandomSampler`.

    They depend on nothing but the seed, the epoch and the number of examples, so a loss curve can
    be laid over that of any other tool whose loader accelerate prepares.
    """

    def __init__(self, num_examples: int, seed: int) -> None:
        self.sampler = SeedableRandomSampler(range(num_examples), data_seed=seed)
        self.num_examples = num_examples

    def __len__(self) -> int:
        return self.num_examples

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose permutation comes next."""
        self.sampler.set_epoch(epoch)


class LengthGroupedOrder:
    """Neighbours of like length, in shuffled chunks: transformers' `group_by_length`."""

    def __init__(self, lengths: Sequence[int], group_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.group_size = group_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(
            LengthGroupedSampler(self.group_size, lengths=self.lengths, generator=generator)
        )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next."""
        self.epoch = epoch
