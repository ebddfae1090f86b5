"""One optimizer update, from its examples to the weights it has moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers.optimization import GreedyLR

from luthier.batching.batch import MicroBatch, Step
from luthier.distributed.strategy import Learner
from luthier.training.diagnosis import Search
from luthier.training.metrics import MetricSums
from luthier.training.nonfinite import NonFiniteGuard
from luthier.training.oom import OomHandler

AFTER_EVALUATIONS = (ReduceLROnPlateau, GreedyLR)
"""Schedules that go on with the numbers of an evaluation, not with each step."""


@dataclass(frozen=True)
class Learned:
    """What a step has given.

    Attributes:
        loss: this rank's share; its mean over ranks is the loss of the step. 0 of a step that was
            left out.
        metrics: of the stage, on this rank.
        computed: the step as it was computed, perhaps in smaller pieces.
        norm: of the gradient before it was clipped.
        learning_rate: that the weights were moved with.
    """

    loss: Tensor
    metrics: MetricSums
    computed: Step
    norm: Tensor | float | None
    learning_rate: float


def train_step(learner: Learner, step: Step, guard: NonFiniteGuard, oom: OomHandler) -> Learned:
    """Learns from the examples of one optimizer update.

    The gradient is the sum of the losses of all micro-batches and ranks, divided once by the units
    of the whole step, which every rank knows from the plan. DDP, FSDP and ZeRO average over ranks,
    so each rank's share is multiplied by their number.

    Args:
        learner: whose model learns.
        step: this rank's share of the examples.
        guard: looks at losses and the gradient; see `nonfinite.py`.
        oom: has the step computed again in smaller pieces where memory runs out.

    Raises:
        NonFiniteError: when a loss or the gradient is not finite, and the run is to end.
        OutOfMemory: when nothing can be computed in smaller pieces.
    """
    args, strategy, stage = learner.args, learner.strategy, learner.stage
    model, optimizer = learner.model_wrapped, learner.optimizer
    device = args.device
    scale = args.world_size / max(step.num_units, 1)
    model.train()
    if hasattr(optimizer, "train"):  # schedule-free optimizers switch modes
        optimizer.train()

    def compute(step: Step) -> tuple[Tensor, MetricSums]:
        guard.begin(step, device)
        total, metrics = torch.zeros((), device=device), MetricSums()
        if stage.measures_first or stage.needs_reference:
            step = measure_first(learner, step, oom)
        last = len(step.micro_batches) - 1
        for index, micro_batch in enumerate(step.micro_batches):
            is_last = index == last
            learner.accelerator.sync_gradients = is_last
            with oom.computing(micro_batch), strategy.no_sync(learner, is_last=is_last):
                loss = stage.loss(model, micro_batch.to(device))
                share = guard.watched(loss.total * scale)
                strategy.backward(learner, share, is_last=is_last)
            total += share.detach()
            metrics.add(loss.metrics)
            if not is_last:
                learner.control = learner.callback_handler.on_substep_end(
                    args, learner.state, learner.control
                )
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


def measure_first(learner: Learner, step: Step, oom: OomHandler) -> Step:
    """The step with the numbers that its stage reads without gradient before it is learned.

    Reads with the bare model, as an evaluation does: nothing is exchanged but the means.
    """
    stage, device = learner.stage, learner.args.device
    sums, batches = MetricSums(), []
    for micro_batch in step.micro_batches:
        with torch.no_grad(), oom.computing(micro_batch):
            here = micro_batch.to(device)
            numbers = dict(here.sequence_numbers)
            if stage.needs_reference:
                with reference_of(learner) as reference:
                    numbers |= stage.measure_reference(reference, here)
            if stage.measures_first:
                sums.add(stage.measure(learner.model, replace(here, sequence_numbers=numbers)))
        batches.append(replace(micro_batch, sequence_numbers=numbers))
    means = sums.means() if stage.measures_first else {}
    return replace(step, micro_batches=tuple(replace(each, step_numbers=means) for each in batches))


@contextmanager
def reference_of(learner: Learner) -> Iterator[Any]:
    """The model as it was before it learned."""
    if isinstance(learner.model, PeftModel):
        with learner.model.disable_adapter():
            yield learner.model
    else:
        yield learner.reference


def loss_of(learner: Learner, micro_batch: MicroBatch) -> Tensor:
    """The loss of a micro-batch by the bare model, which exchanges nothing."""
    total: Tensor = learner.stage.loss(learner.model, micro_batch.to(learner.args.device)).total
    return total


def search_of(learner: Learner, oom: OomHandler) -> Search:
    """How the cause of a number that is not finite is looked for."""
    stage = learner.stage
    is_alone = not (stage.measures_first or stage.needs_reference)
    compute = partial(loss_of, learner) if learner.strategy.computes_alone and is_alone else None
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
