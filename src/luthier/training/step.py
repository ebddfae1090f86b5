"""One optimizer update, from its examples to the weights it has moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers.optimization import GreedyLR

from luthier.batching.batch import MicroBatch, Step
from luthier.distributed.strategy import Learner
from luthier.example import REFERENCE
from luthier.training.diagnosis import Search
from luthier.training.metrics import MetricSums
from luthier.training.nonfinite import NonFiniteGuard
from luthier.training.oom import OomHandler

if TYPE_CHECKING:
    from luthier.stages.stage import Coupled

AFTER_EVALUATIONS = (ReduceLROnPlateau, GreedyLR)
"""Schedules that go on with the numbers of an evaluation, not with each step."""


@dataclass(frozen=True)
class Learned:
    """What a step has given."""

    loss: Tensor
    """This rank's share; its mean over ranks is the loss of the step. 0 of a step that was left
    out."""
    metrics: MetricSums  # of the stage, on this rank
    computed: Step  # the step as it was computed, perhaps in smaller pieces
    norm: Tensor | float | None  # of the gradient before it was clipped
    learning_rate: float  # that the weights were moved with


def train_step(learner: Learner, step: Step, guard: NonFiniteGuard, oom: OomHandler) -> Learned:
    """Learns from the examples of one optimizer update.

    The gradient is the sum of the losses of all micro-batches and ranks, divided once by the units
    of the whole step, which every rank knows from the plan. DDP, FSDP and ZeRO average over ranks,
    so each rank's share is multiplied by their number. `guard` looks at losses and the gradient;
    `oom` has the step computed again in smaller pieces where memory runs out.

    Raises:
        NonFiniteError: when a loss or the gradient is not finite, and the run is to end.
        OutOfMemory: when nothing can be computed in smaller pieces.
    """
    args, strategy, stage = learner.args, learner.strategy, learner.stage
    model, optimizer = learner.model_wrapped, learner.optimizer
    device = args.device
    scale = args.world_size / max(step.num_units, 1)
    agreed: tuple[Mapping[str, float], Coupled | None] | None = None
    model.train()
    if hasattr(optimizer, "train"):  # schedule-free optimizers switch modes
        optimizer.train()

    def compute(step: Step) -> tuple[Tensor, MetricSums]:
        nonlocal agreed
        guard.begin(step, device)
        total, metrics = torch.zeros((), device=device), MetricSums()
        if agreed is None:  # ranks that had enough memory do not tell it again
            step, agreed = read_first(learner, step, oom)
        means, whole = agreed
        last = len(step.micro_batches) - 1
        for index, micro_batch in enumerate(step.micro_batches):
            is_last = index == last
            learner.accelerator.sync_gradients = is_last
            with oom.computing(micro_batch), strategy.no_sync(learner, is_last=is_last):
                batch = ready(learner, micro_batch, means)
                if whole is None:
                    loss = stage.loss(model, batch)
                    share = guard.watched(loss.total * scale)
                    metrics.add(loss.metrics)
                else:
                    read = stage.measure_sequences(model, batch)
                    share = guard.watched(whole.share(batch, read) * scale, by=read.values())
                strategy.backward(learner, share, is_last=is_last)
            total += share.detach()
            if not is_last:
                learner.control = learner.callback_handler.on_substep_end(
                    args, learner.state, learner.control
                )
        if whole is not None:  # the same on every rank
            total = whole.total.to(device) / max(step.num_units, 1)
            metrics.add(whole.metrics)
        return total, metrics

    total, metrics = oom.train(model, step, device, compute)
    has_moved = True

    def accepts(norm: Tensor | float | None) -> bool:
        nonlocal total, metrics, has_moved
        if guard.accepts(norm, learner.state.global_step + 1, search_of(learner, oom)):
            return True
        learner.model.zero_grad()
        total, metrics, has_moved = torch.zeros((), device=device), MetricSums(), False
        return False

    norm = strategy.clip(learner, accepts)
    handler = learner.callback_handler
    learner.control = handler.on_pre_optimizer_step(args, learner.state, learner.control)
    if has_moved or args.fp16:  # the scaler leaves the step out, and has to be told of it
        optimizer.step()
    learner.control = handler.on_optimizer_step(args, learner.state, learner.control)
    learning_rate = learning_rate_of(learner)
    is_left_out = learner.accelerator.optimizer_step_was_skipped
    if not is_left_out and not isinstance(learner.lr_scheduler, AFTER_EVALUATIONS):
        learner.lr_scheduler.step()
    model.zero_grad()
    return Learned(total, metrics, oom.latest or step, norm, learning_rate)


def read_first(
    learner: Learner, step: Step, oom: OomHandler
) -> tuple[Step, tuple[Mapping[str, float], Coupled | None]]:
    """Reads a step without gradient, where its stage asks for that, with the bare model.

    Returns:
        The step with what its reference has said; and of all ranks, the means of the stage's
        `measure`, and the loss of the whole step where its sequences are coupled.
    """
    stage, model = learner.stage, learner.model
    means: Mapping[str, float] = {}

    def through(batches: Sequence[MicroBatch], look: Callable[[MicroBatch], object]) -> Step:
        read = []
        for micro_batch in batches:
            with torch.no_grad(), oom.computing(micro_batch):
                batch = ready(learner, micro_batch, means)
                look(batch)
            read.append(replace(micro_batch, token_numbers=batch.token_numbers))
        return replace(step, micro_batches=tuple(read))

    if stage.measures_first:
        sums = MetricSums()
        batches = step.measured or step.micro_batches
        read = through(batches, lambda batch: sums.add(stage.measure(model, batch)))
        step, means = step if step.measured else read, sums.means()
    if not stage.couples_sequences:
        return step, (means, None)
    found: list[Mapping[str, Tensor]] = []
    step = through(
        step.micro_batches, lambda batch: found.append(stage.measure_sequences(model, batch))
    )
    examples = [each.examples for each in step.micro_batches]
    return step, (means, stage.couple(zip(examples, found, strict=True)))


def ready(learner: Learner, micro_batch: MicroBatch, means: Mapping[str, float]) -> MicroBatch:
    """The micro-batch on its device, with all that its loss reads beside the model."""
    stage, reference = learner.stage, learner.reference
    batch = micro_batch.to(learner.args.device)
    batch = replace(batch, step_numbers={**learner.progress.remembered(), **means})
    if not stage.needs_reference or reference is None or REFERENCE in batch.token_numbers:
        return batch
    with torch.no_grad(), reference.reading(learner.model) as model:
        return stage.measure_reference(model, batch)


def loss_of(learner: Learner, micro_batch: MicroBatch) -> Tensor:
    """The loss of a micro-batch as of a step of its own, by the bare model without other ranks."""
    stage, model = learner.stage, learner.model
    batch = ready(learner, micro_batch, {})
    if stage.measures_first:
        with torch.no_grad():
            measured = stage.measure(model, batch)
        means = {name: float(total / count) for name, (total, count) in measured.items() if count}
        batch = replace(batch, step_numbers={**batch.step_numbers, **means})
    total: Tensor = stage.loss(model, batch).total
    return total


def search_of(learner: Learner, oom: OomHandler) -> Search:
    """How the cause of a number that is not finite is looked for."""
    compute = partial(loss_of, learner) if learner.strategy.computes_alone else None
    return Search(learner.model, compute, oom.pad_token_id, share_prefixes=oom.share_prefixes)


def learning_rate_of(learner: Learner) -> float:
    """The rate of the first group of weights, as its schedule has last said it."""
    schedule = learner.lr_scheduler
    if isinstance(schedule, AFTER_EVALUATIONS):
        rate = learner.optimizer.param_groups[0]["lr"]
    else:
        try:
            rate = schedule.get_last_lr()[0]
        except AssertionError:  # DeepSpeed's, before fp16 has found a scale
            rate = 0
    return float(rate)
