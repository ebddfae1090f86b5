"""What a stage tells the trainer: which records it reads, its unit, and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from luthier.batching.batch import MicroBatch
from luthier.records import Record
from luthier.registry import Registry


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch before any division.

    Attributes:
        total: scalar with gradient, the sum over the micro-batch's units.
        counts: further sums over units, by metric name; divided by the units like the loss.
    """

    total: Tensor
    counts: dict[str, Tensor] = field(default_factory=dict)


class Stage(Protocol):
    """One kind of training.

    Attributes:
        record: what a row of data has to be.
    """

    record: type[Record]

    def __init__(self, label_smoothing: float = 0.0) -> None: ...

    def loss(self, model: Any, batch: MicroBatch, *, with_accuracy: bool) -> Loss:
        """Runs the model on the micro-batch and sums the loss over its units."""
        ...

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Further metrics of an evaluation, which follow from its means by their names."""
        ...


STAGES: Registry[type[Stage]] = Registry("stage", "luthier.stages")
