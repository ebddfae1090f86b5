"""An evaluation: means over all units of a set, so that no number depends on the batch size."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from transformers.trainer_utils import speed_metrics

from luthier.batching.batch import MicroBatch
from luthier.batching.prefetch import Prefetch
from luthier.batching.steps import StepLoader
from luthier.distributed.strategy import Learner
from luthier.training.metrics import MetricSums
from luthier.training.oom import OomHandler
from luthier.training.step import measure_first

if TYPE_CHECKING:
    from luthier.stages.stage import Loss


class EvaluationCut(Exception):
    """An evaluation is left before its end, because the run is to stop."""


def evaluate_set(
    learner: Learner, loader: StepLoader, oom: OomHandler, prefix: str, *, as_held: bool
) -> dict[str, float]:
    """The loss of a set, the stage's metrics, and the time it took.

    Args:
        learner: whose model is evaluated; it stays in evaluation mode.
        loader: of the whole set, this rank's share.
        oom: computes micro-batches in smaller pieces where memory runs out.
        prefix: of the metrics' names, `eval` or `eval_NAME`.
        as_held: whether the weights stay in the dtype they are held in; otherwise they are brought
            to that of `bf16_full_eval` or `fp16_full_eval`.
    """
    begun = time.time()
    args, stage = learner.args, learner.stage
    model = learner.strategy.evaluation_model(learner)
    if not as_held and (args.bf16_full_eval or args.fp16_full_eval):
        dtype = torch.bfloat16 if args.bf16_full_eval else torch.float16
        model.to(device=args.device, dtype=dtype)
    model.eval()
    if hasattr(learner.optimizer, "eval"):
        learner.optimizer.eval()
    sums = MetricSums(("loss", *stage.eval_metrics))

    def compute(micro_batch: MicroBatch) -> Loss:
        with torch.no_grad():
            return stage.loss(model, micro_batch.to(args.device))

    num_units = num_examples = 0
    learner.callback_handler.eval_dataloader = loader
    for step in Prefetch(loader):
        num_units += step.num_units
        num_examples += step.num_examples
        if stage.measures_first or stage.needs_reference:
            step = measure_first(learner, step, oom)
        for loss in oom.each(step, compute):
            sums.add({"loss": (loss.total, 0), **loss.metrics})
            learner.control = learner.callback_handler.on_prediction_step(
                args, learner.state, learner.control
            )
    if learner.is_world_process_zero():  # units are those of all ranks
        sums.add({"loss": (0, max(num_units, 1))})
    means = sums.means()
    metrics = {f"{prefix}_{name}": value for name, value in (means | stage.derive(means)).items()}
    batches = math.ceil(num_examples / (args.eval_batch_size * args.world_size))
    metrics |= speed_metrics(prefix, begun, num_samples=num_examples, num_steps=batches)
    return metrics
