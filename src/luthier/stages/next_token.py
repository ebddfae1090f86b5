"""The loss of stages that predict tokens from those before them: a sum, its unit a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.batching.batch import MicroBatch
from luthier.example import WEIGHT
from luthier.modeling.reads import read_logps, read_nll
from luthier.stages.stage import Loss


class NextToken:
    """The sum of next-token losses, each times its weight; the unit is a learned token.

    A learned token is one unit whatever its weight, so the other tokens of a step learn the same
    beside it: a weight of 0.5 halves the gradient of its own tokens only. Accuracy counts tokens.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, model: Any, batch: MicroBatch, *, with_accuracy: bool) -> Loss:
        """Runs the model on the micro-batch and sums the loss over its learned tokens."""
        weights_N = batch.token_numbers.get(WEIGHT)
        if weights_N is None:
            total, correct, _ = read_nll(
                model, batch, label_smoothing=self.label_smoothing, with_accuracy=with_accuracy
            )
        else:
            logps_N, correct_N, _ = read_logps(
                model, batch, label_smoothing=self.label_smoothing, with_accuracy=with_accuracy
            )
            total = -(weights_N * logps_N).sum()
            correct = None if correct_N is None else correct_N.sum()
        return Loss(total) if correct is None else Loss(total, {"accuracy": correct})

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Nothing but the means is of interest."""
        return {}
