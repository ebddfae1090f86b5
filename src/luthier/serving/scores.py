"""Token sequences -> the scores of a reward model."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from luthier.batching.padded import pad
from luthier.errors import NonFiniteError
from luthier.example import Example
from luthier.modeling.dtypes import autocasting
from luthier.modeling.reads import read_values
from luthier.records import IGNORE_INDEX

MOST_TOKENS = 8192
"""Tokens of a forward pass, padding counted; a longer sequence goes alone."""


class Scorer:
    """Scores of several threads' sequences, a forward pass at a time."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self._model, self._pad = model, pad_token_id
        self._busy = threading.Lock()

    def score(
        self, sequences: Sequence[Sequence[int]], is_over: Callable[[], bool] = lambda: False
    ) -> list[float]:
        """The score of each sequence's last token, in their order; fewer once it is over.

        Args:
            sequences: token ids, at least one each.
            is_over: asked before each forward pass; then nobody reads the scores.

        Raises:
            NonFiniteError: if the model gives no number.
        """
        found: dict[int, float] = {}
        for batch in _batches([len(each) for each in sequences]):
            with self._busy:
                if is_over():
                    break
                found |= zip(batch, self._forward([sequences[at] for at in batch]), strict=True)
        if not all(map(math.isfinite, found.values())):
            raise NonFiniteError("the model's score is no finite number")
        return [found[at] for at in sorted(found)]

    def _forward(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        examples = [Example(list(each), [IGNORE_INDEX] * len(each)) for each in sequences]
        batch = pad(examples, self._pad).to(self._model.device)
        with torch.no_grad(), autocasting(self._model):
            scores: list[float] = read_values(self._model, batch).tolist()
        return scores


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of sequences that go through the model together, the longest first."""
    batches: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= MOST_TOKENS:
            batches[-1].append(at)
        else:
            batches.append([at])
    return batches
