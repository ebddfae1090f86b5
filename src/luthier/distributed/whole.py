"""Every rank holds all: one process, or several with DDP."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from luthier.distributed import fsdp_state
from luthier.distributed.strategy import SCHEDULER, Accepts, Learner, Strategy


class Whole(Strategy):
    """Weights, gradients and states on every rank."""

    shards_states = False
    computes_alone = True

    def prepare(self, learner: Learner, max_steps: int, checkpoint: str | None) -> None:
        """Weights are read before the model is wrapped, states when they have their places."""
        if checkpoint is not None:
            self.load_weights(learner, checkpoint)
        learner.create_optimizer()
        learner.model_wrapped, learner.optimizer = learner.accelerator.prepare(
            learner.model, learner.optimizer
        )
        learner.create_scheduler(max_steps)
        if isinstance(learner.model_wrapped, DistributedDataParallel):
            if learner.args.ddp_broadcast_buffers is None:  # they were sent once
                learner.model_wrapped.broadcast_buffers = False
        if checkpoint is not None:
            self._load_states(learner, Path(checkpoint))

    def no_sync(self, learner: Learner, *, is_last: bool) -> AbstractContextManager[Any]:
        """Without the exchange, unless accelerate is told to make one with each micro-batch."""
        always = learner.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        if is_last or always:
            return nullcontext()
        context: AbstractContextManager[Any] = learner.accelerator.no_sync(learner.model_wrapped)
        return context

    def clip(self, learner: Learner, accepts: Accepts) -> Tensor:
        """Looks at the norm before the pass that clips."""
        learner.accelerator.unscale_gradients()
        weights = list(learner.model_wrapped.parameters())
        norm = torch.nn.utils.get_total_norm([e.grad for e in weights if e.grad is not None])
        if accepts(norm) and learner.args.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(weights, learner.args.max_grad_norm, norm)
        return norm

    def save_states(self, learner: Learner, folder: str) -> None:
        """The first rank's, which are those of all."""
        if learner.args.should_save:
            torch.save(
                learner.optimizer.state_dict(), Path(folder) / fsdp_state.OPTIMIZER_OF_OTHERS
            )
            torch.save(learner.lr_scheduler.state_dict(), Path(folder) / SCHEDULER)

    def load_weights(self, learner: Learner, folder: str | Path) -> None:
        """Also what a run with FSDP2 has written."""
        fsdp_state.load_weights(learner.model, folder)

    def _load_states(self, learner: Learner, folder: Path) -> None:
        schedule, states = folder / SCHEDULER, folder / fsdp_state.OPTIMIZER_OF_OTHERS
        if not schedule.is_file():  # written beside every optimizer
            return
        if fsdp_state.is_of_fsdp(folder):
            fsdp_state.load_optimizer(learner.model, learner.optimizer, folder)
        elif states.is_file():
            device, is_alone = learner.args.device, learner.args.world_size == 1
            place = "cpu" if is_alone or device.type == "cpu" else device
            saved = torch.load(states, map_location=place, weights_only=True)
            learner.optimizer.load_state_dict(saved)
        else:
            return
        learner.lr_scheduler.load_state_dict(torch.load(schedule, weights_only=True))
