"""An evaluation: means over all units of a set, so that no number depends on the batch size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers.trainer_utils import speed_metrics

from luthier.batching.batch import MicroBatch
from luthier.batching.prefetch import Prefetch
from luthier.batching.steps import StepLoader
from luthier.distributed.strategy import Learner
from luthier.processes.ranks import gather_objects
from luthier.training.metrics import MetricSums
from luthier.training.oom import OomHandler
from luthier.training.step import ready

if TYPE_CHECKING:
    from luthier.stages.stage import Coupled, Loss


T = TypeVar("T")


class EvaluationCut(Exception):
    """An evaluation is left before its end, because the run is to stop."""


def model_to_read(learner: Learner, *, as_held: bool) -> Any:
    """The model in evaluation mode, where it is computed; for `as_held` see `evaluate_set`."""
    args = learner.args
    model = learner.strategy.evaluation_model(learner)
    if not as_held and (args.bf16_full_eval or args.fp16_full_eval):
        dtype = torch.bfloat16 if args.bf16_full_eval else torch.float16
        model.to(device=args.device, dtype=dtype)
    model.eval()
    if hasattr(learner.optimizer, "eval"):
        learner.optimizer.eval()
    return model


def score_set(learner: Learner, loader: StepLoader, oom: OomHandler) -> list[list[float]]:
    """The scores of each row's sequences, in the rows' order; every rank gets all of them.

    The stage measures `score`; `loader` is of the whole set, this rank's share.
    """
    model, stage = model_to_read(learner, as_held=False), learner.stage
    found: dict[int, list[float]] = {}

    def compute(micro_batch: MicroBatch) -> tuple[MicroBatch, Any]:
        with torch.no_grad():
            return micro_batch, stage.measure_sequences(model, ready(learner, micro_batch, {}))

    for step in Prefetch(loader):
        for batch, numbers in oom.each(step, compute):
            scores = iter(numbers["score"].tolist())
            for example in batch.examples:
                found[example.row] = list(islice(scores, len(example.sequence_lengths)))
    rows = {row: each for rank in gather_objects(found) for row, each in rank.items()}
    return [rows[row] for row in sorted(rows)]


def evaluate_set(
    learner: Learner, loader: StepLoader, oom: OomHandler, prefix: str, *, as_held: bool
) -> dict[str, float]:
    """The loss of a set, the stage's metrics, and the time it took, by names that `prefix` begins.

    The model stays in evaluation mode. With `as_held` the weights stay in the dtype they are held
    in; otherwise they are brought to that of `bf16_full_eval` or `fp16_full_eval`.
    """
    begun = time.time()
    args, stage = learner.args, learner.stage
    model = model_to_read(learner, as_held=as_held)
    sums = MetricSums(("loss", *stage.eval_metrics))
    means: Mapping[str, float] = {}
    num_units = num_examples = 0
    learner.callback_handler.eval_dataloader = loader

    def through(look: Callable[[Any, MicroBatch], T], *, is_first: bool = False) -> Iterator[T]:
        """What is read of each micro-batch of the set."""
        nonlocal num_units, num_examples

        def compute(micro_batch: MicroBatch) -> T:
            with torch.no_grad():
                return look(model, ready(learner, micro_batch, means))

        for step in Prefetch(loader):
            if is_first:
                step = replace(step, micro_batches=step.measured or step.micro_batches)
            else:
                num_units += step.num_units
                num_examples += step.num_examples
            for found in oom.each(step, compute):
                yield found
                learner.control = learner.callback_handler.on_prediction_step(
                    args, learner.state, learner.control
                )

    if stage.measures_first:
        measured = MetricSums()
        for each in through(stage.measure, is_first=True):
            measured.add(each)
        means = measured.means()
    losses: Iterable[Loss | Coupled]
    if stage.couples_sequences:
        losses = [
            stage.couple(
                through(lambda *given: (given[1].examples, stage.measure_sequences(*given)))
            )
        ]
    else:
        losses = through(stage.loss)
    for loss in losses:
        total = loss.total.to(args.device) / (args.world_size if stage.couples_sequences else 1)
        sums.add({"loss": (total, 0), **loss.metrics})
    if learner.is_world_process_zero():  # units are those of all ranks
        sums.add({"loss": (0, max(num_units, 1))})
    means = sums.means()
    metrics = {f"{prefix}_{name}": value for name, value in (means | stage.derive(means)).items()}
    batches = math.ceil(num_examples / (args.eval_batch_size * args.world_size))
    metrics |= speed_metrics(prefix, begun, num_samples=num_examples, num_steps=batches)
    return metrics
