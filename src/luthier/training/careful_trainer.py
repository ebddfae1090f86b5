"""The trainer of steps, careful with numbers that are not finite and memory that runs out."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from luthier.batching.batch import MicroBatch
from luthier.distributed import deepspeed
from luthier.distributed.strategy import find_strategy
from luthier.errors import OutOfMemory
from luthier.modeling.device import is_out_of_memory
from luthier.processes.ranks import num_ranks
from luthier.stages.stage import Loss, Sum
from luthier.suggestions import suggest
from luthier.training.numbers.diagnosis import Search
from luthier.training.numbers.guard import NumberGuard
from luthier.training.origins import origins_of
from luthier.training.out_of_memory import MemoryKeeper
from luthier.training.stepping_trainer import SteppingTrainer
from luthier.training.sums import MetricSums


class CarefulTrainer(SteppingTrainer):
    """What transformers' trainer does otherwise where a step can go wrong.

    The step itself is the subclass's: it begins with `numbers.begin`, hands each loss through
    `numbers.watched`, and does each micro-batch inside of `memory.computing`.
    """

    _tr_loss: Tensor
    _metrics: MetricSums
    _metrics_before: dict[str, Sum]

    @cached_property
    def numbers(self) -> NumberGuard:
        """Watches losses and gradients."""
        return NumberGuard(
            self.arguments.training.on_nonfinite,
            has_scaler=self.args.fp16,
            name_rows=lambda rows: origins_of(self.steps_table, rows),
        )

    @cached_property
    def memory(self) -> MemoryKeeper:
        """Has steps of training computed in smaller pieces where memory runs out."""
        return self._keeper(exchanges=num_ranks() > 1)

    @cached_property
    def evaluation_memory(self) -> MemoryKeeper:
        """The same for evaluation, which exchanges nothing before its end."""
        return self._keeper(exchanges=False)

    def _keeper(self, *, exchanges: bool) -> MemoryKeeper:
        assert self.processing_class.pad_token_id is not None
        return MemoryKeeper(
            can_retry=self._can_compute_alone,
            exchanges=exchanges,
            pad_token_id=self.processing_class.pad_token_id,
            remedies=self._remedies,
        )

    @cached_property
    def _can_compute_alone(self) -> bool:
        """Whether a rank may compute a micro-batch again without the others."""
        return find_strategy(self.arguments, self.args).name in ("single", "ddp")

    def _micro_loss(self, model: Any, micro_batch: MicroBatch) -> Loss:
        with self.compute_loss_context_manager():
            return self.stage.loss(model, micro_batch.to(self.args.device))

    def train(self, *args: Any, **options: Any) -> Any:
        """Trains; memory that runs out is told with what helps.

        Raises:
            NonFiniteError: when a loss, a gradient or a trained weight is not finite.
            OutOfMemory: when nothing can be computed in smaller pieces.
        """
        try:
            return super().train(*args, **options)
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            said = str(problem).partition("\n")[0]
        self.model.zero_grad()
        raise OutOfMemory(f"memory has run out between micro-batches. {said}\n{self._remedies()}")

    def _remedies(self, num_tokens: int = 0, longest: int = 0) -> str:
        """What helps when memory has run out in a micro-batch of so many tokens."""
        return suggest(
            self.model,
            self.arguments,
            num_tokens=num_tokens,
            longest=longest,
            is_padded=self.layout == "padded",
            autocast=self.accelerator.autocast if self._can_compute_alone else None,
        )

    # Numbers

    def _clip_grad_norm(self, model: Any) -> Any:
        """The norm of the gradient, which is clipped if it is finite."""
        if not self._can_compute_alone:  # gradients in parts: the library's way
            return super()._clip_grad_norm(model)
        norm = self._norm(model)
        if self._accepts(norm):
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if self.is_deepspeed_enabled:  # its engine clips and updates at once; the next step is idle
            return deepspeed.step(model, self._accepts)
        if self._can_compute_alone:
            if grad_norm is None:  # it was not clipped
                grad_norm = self._norm(model)
                self._accepts(grad_norm)
            return grad_norm
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self._accepts(grad_norm)
        return grad_norm

    def _norm(self, model: Any) -> Tensor:
        """Of gradients that every rank holds whole, without the pass that would clip them."""
        self.accelerator.unscale_gradients()
        return torch.nn.utils.get_total_norm(
            [each.grad for each in model.parameters() if each.grad is not None]
        )

    def _accepts(self, norm: Tensor | float | None) -> bool:
        """Whether the step may move weights; if not, neither its gradient nor its loss stays."""
        if self.numbers.accepts(norm, self.state.global_step + 1, self._search()):
            return True
        self.model.zero_grad()
        if not self.args.fp16:  # there the scaler leaves the step out, and has to be told of it
            self.accelerator.gradient_state._set_sync_gradients(False)
        self.numbers.take_back(self._tr_loss)
        self._metrics = MetricSums()
        self._metrics.add(self._metrics_before)
        return False

    def _search(self) -> Search:
        assert self.processing_class.pad_token_id is not None
        return Search(
            self.model,
            self._loss_alone if self._can_compute_alone else None,
            self.processing_class.pad_token_id,
            share_prefixes=self.memory.share_prefixes,
        )

    def _loss_alone(self, micro_batch: MicroBatch) -> Tensor:
        return self._micro_loss(self.model, micro_batch).total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Says which steps were left out; a mean that is not finite ends with its line."""
        if "loss" in logs:
            self.numbers.annotate(logs, self.state.global_step)
            if not math.isfinite(logs["loss"]):
                self._tr_loss.zero_()  # the library takes it from itself, which keeps NaN
        super().log(logs, start_time)
