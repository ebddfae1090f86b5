"""What a stage tells the run: from rows to examples, its loss as a sum, and its metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.arguments import choices
from luthier.data.road import Road
from luthier.example import REFERENCE, Example
from luthier.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.arguments.finetuning import FinetuningArguments
    from luthier.batching.batch import MicroBatch

Sum: TypeAlias = "tuple[Tensor | float, Tensor | float]"
"""A sum and what it is divided by, once, where a line is logged."""


@dataclass(frozen=True)
class Loss:
    """What one micro-batch gives, before any division."""

    total: Tensor  # scalar with gradient, the sum over the micro-batch's units
    metrics: Mapping[str, Sum] = field(default_factory=dict)
    """By name a sum, without gradient, and its count; both are added over the micro-batches, steps
    and ranks behind a logged line."""


@dataclass(frozen=True)
class Coupled:
    """The loss of the sequences of all ranks together, taken on their numbers alone."""

    total: Tensor  # of all, the same on every rank
    metrics: Mapping[str, Sum]  # of all on the first rank, none on the others
    slopes: Mapping[str, Tensor]
    """By name (S,), its derivatives by the numbers of this rank's sequences."""
    places: Mapping[Example, range]  # where the sequences of an example stand among these

    def share(self, batch: MicroBatch, numbers: Mapping[str, Tensor]) -> Tensor:
        """A scalar whose gradient is that of the whole loss by a micro-batch, perhaps cut anew.

        Each number (S,), read again with gradient, times the derivative by it (gradient caching,
        Gao et al. 2021, arXiv 2101.06983, section 3.2).
        """
        places = [place for example in batch.examples for place in self.places[example]]
        total = batch.ends.sum() * 0.0
        for name, numbers_S in numbers.items():
            if numbers_S.requires_grad:
                slopes_S = self.slopes[name].to(numbers_S)[places] if places else 0.0
                total = total + (numbers_S * slopes_S).sum()
        return total


class Stage(Road):
    """One kind of training; made of the run's arguments, of which it reads its own.

    How rows become examples it says as `Road`; how examples are learned it says here.

    A module of this room registers one with `@STAGES.register("name")`. It imports nothing heavy
    before a loss is taken, so its names are known before anything is loaded.
    """

    train_metrics: tuple[str, ...] = ()  # the names in `Loss.metrics` of a step of training
    eval_metrics: tuple[str, ...] = ()  # those of an evaluation; a curve is drawn of each
    derived_metrics: tuple[str, ...] = ()
    """Those that `derive` adds to an evaluation, or to a logged line of training."""
    measures_first = False
    """Whether `measure` goes over a step before its loss is taken; in an evaluation over the whole
    set."""
    draws_dropout = True
    """Whether layers may draw random zeros; not where a model is held against another, which draws
    none."""
    needs_reference = False  # what `reads_reference` says of the run
    keeps_reference = True
    """Whether all that is asked of it is `reference_logp`, so that it may be read once, before
    training."""
    mismatches_answers = False
    """Whether `measure` is of prompts with the answer of another row, which are not learned; see
    `batching/mismatched.py`."""
    remembers: tuple[str, ...] = ()
    """The names in `train_metrics` whose means over all earlier steps are among
    `batch.step_numbers` under the same names; before the second step there are none."""
    couples_sequences = False
    """Whether the loss of a sequence depends on the others of its step, or of its evaluation set.
    Then `step_loss` is asked once for all of them together."""

    @classmethod
    def reads_reference(cls, knobs: FinetuningArguments) -> bool:
        """Whether the loss, by these settings, reads numbers of the model as it was at first.

        Names of losses among them may be unknown.
        """
        return False

    def look(self, train: Any) -> None:
        """Says what the rows of training, a table or a stream, mean for the stage's settings."""

    def loss(self, model: Any, batch: MicroBatch) -> Loss:
        """Runs the model on the micro-batch, on its device, and sums the loss over its units.

        One without examples asks for a sum of 0. The model is in training mode in a step, otherwise
        in an evaluation.
        """
        numbers = self.measure_sequences(model, batch)
        if not batch.examples:
            return Loss(sum((each.sum() * 0 for each in numbers.values()), batch.ends.sum() * 0.0))
        return self.step_loss(numbers)

    def measure_sequences(self, model: Any, batch: MicroBatch) -> dict[str, Tensor]:
        """(S,) float32 numbers of the sequences of a micro-batch, all that `step_loss` is made of.

        Their gradient is asked for where they have one. Those of a step that is coupled are read
        without, and a second time with it.
        """
        raise NotImplementedError

    def step_loss(self, numbers: Mapping[str, Tensor]) -> Loss:
        """The loss made of the numbers of sequences alone, (S,) each.

        They are of whole examples one after the other: of a micro-batch, or where sequences are
        coupled of a whole step or evaluation set of all ranks, on the CPU.
        """
        raise NotImplementedError

    def couple(self, read: Iterable[tuple[Sequence[Example], Mapping[str, Tensor]]]) -> Coupled:
        """The loss of the sequences of all ranks together; every rank must call it.

        `read` is the examples of each micro-batch of this rank, and what `measure_sequences` says.
        """
        import torch

        from luthier.processes.ranks import gather_objects, rank

        parts: dict[str, list[Tensor]] = {}
        places: dict[Example, range] = {}
        start = 0
        for examples, numbers in read:
            for example in examples:
                end = start + len(example.sequence_lengths)
                places[example], start = range(start, end), end
            for name, numbers_S in numbers.items() if examples else ():
                parts.setdefault(name, []).append(numbers_S)
        ranks = gather_objects({name: torch.cat(each).cpu() for name, each in parts.items()})
        names = next((list(each) for each in ranks if each), [])
        lengths = [len(each[names[0]]) if each else 0 for each in ranks]
        leaves = [
            torch.cat([each[name] for each in ranks if each]).requires_grad_() for name in names
        ]
        with torch.enable_grad():
            loss = self.step_loss(dict(zip(names, leaves, strict=True)))
            slopes = torch.autograd.grad(loss.total, leaves, materialize_grads=True)
        first = sum(lengths[: rank()])
        own = [each[first : first + lengths[rank()]] for each in slopes]
        metrics = loss.metrics if rank() == 0 else {}
        return Coupled(loss.total.detach(), metrics, dict(zip(names, own, strict=True)), places)

    def measure(self, model: Any, batch: MicroBatch) -> Mapping[str, Sum]:
        """Sums of a micro-batch, without gradient.

        Their means over micro-batches and ranks are `batch.step_numbers` when the loss is taken.
        """
        raise NotImplementedError

    def measure_reference(self, reference: Any, batch: MicroBatch) -> MicroBatch:
        """The micro-batch with what the reference says of its learned tokens, without gradient.

        That is by default the token number `reference_logp`. The reference is the model as it was
        at first, in evaluation mode.
        """
        from luthier.modeling.reads import read_logps

        numbers = {REFERENCE: read_logps(reference, batch).logps_N}
        return replace(batch, token_numbers={**batch.token_numbers, **numbers})

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Further metrics that follow from means; `loss` is among those of an evaluation alone."""
        return {}


STAGES: Registry[type[Stage]] = choices.STAGES
