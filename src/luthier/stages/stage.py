"""What a stage tells the run: from rows to examples, its loss as a sum, and its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.data.road import Road
from luthier.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.batching.batch import MicroBatch

Sum: TypeAlias = "tuple[Tensor | float, Tensor | float]"
"""A sum and what it is divided by, once, where a line is logged."""


@dataclass(frozen=True)
class Loss:
    """What one micro-batch gives, before any division.

    Attributes:
        total: scalar with gradient, the sum over the micro-batch's units.
        metrics: by name a sum, without gradient, and its count; both are added over the
            micro-batches, steps and ranks behind a logged line.
    """

    total: Tensor
    metrics: Mapping[str, Sum] = field(default_factory=dict)


class Stage(Road):
    """One kind of training; made of the run's arguments, of which it reads its own.

    How rows become examples it says as `Road`; how examples are learned it says here.

    A module of this room registers one with `@STAGES.register("name")`. It imports nothing heavy
    before a loss is taken, so its names are known before anything is loaded.

    Attributes:
        train_metrics: the names in `Loss.metrics` of a step of training.
        eval_metrics: those of an evaluation; a curve is drawn of each.
        derived_metrics: those that `derive` adds to an evaluation.
        measures_first: whether `measure` goes over a step before its loss is taken.
        needs_reference: whether `measure_reference` does, with the model as it was at first.
    """

    train_metrics: tuple[str, ...] = ()
    eval_metrics: tuple[str, ...] = ()
    derived_metrics: tuple[str, ...] = ()
    measures_first = False
    needs_reference = False

    def loss(self, model: Any, batch: MicroBatch) -> Loss:
        """Runs the model on the micro-batch and sums the loss over its units.

        Args:
            model: in training mode in a step, otherwise in an evaluation.
            batch: on the model's device.
        """
        raise NotImplementedError

    def measure(self, model: Any, batch: MicroBatch) -> Mapping[str, Sum]:
        """Sums of a micro-batch, without gradient.

        Their means over micro-batches and ranks are `batch.step_numbers` when the loss is taken.
        """
        raise NotImplementedError

    def measure_reference(self, reference: Any, batch: MicroBatch) -> Mapping[str, Tensor]:
        """(S,) numbers of the sequences of a micro-batch, without gradient.

        They are among `batch.sequence_numbers` when the loss is taken.

        Args:
            reference: the model without its adapter, or a copy from before the first step.
            batch: on the model's device.
        """
        raise NotImplementedError

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Further metrics of an evaluation, which follow from its means by their names."""
        return {}


STAGES: Registry[type[Stage]] = Registry("stage", "luthier.stages")
