"""The loss of stages that predict tokens from those before them: a sum, its unit a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.batching.batch import MicroBatch
from luthier.modeling.reads import read_nll
from luthier.stages.stage import Loss


class NextToken:
    """The sum of next-token losses; the unit is a learned token."""

    units_column = "num_learned"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, model: Any, batch: MicroBatch, *, with_accuracy: bool) -> Loss:
        """Runs the model on the micro-batch and sums the loss over its learned tokens."""
        total, correct, _ = read_nll(
            model, batch, label_smoothing=self.label_smoothing, with_accuracy=with_accuracy
        )
        return Loss(total) if correct is None else Loss(total, {"accuracy": correct})

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Nothing but the means is of interest."""
        return {}
