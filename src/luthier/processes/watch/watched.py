"""A run under watch: begun when its processes have met, told of every event of training."""

from __future__ import annotations

import faulthandler
import os
import sys
from types import TracebackType
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerState

from luthier.arguments.record import Arguments
from luthier.processes.ranks import num_ranks, rank
from luthier.processes.watch.watch import Watch


class Watched:
    """A block in which this rank and the others look after each other, once it has begun to.

    Whether the block ends well or by an exception, the others learn it; see `Watch.leave`.
    """

    def __init__(self) -> None:
        self._watch: Watch | None = None

    def begin(self, arguments: Arguments) -> list[TrainerCallback]:
        """Begins, when the process group has been joined; alone, nothing happens.

        Args:
            arguments: resolved.

        Returns:
            The callbacks by which the watch hears that the run gets on.
        """
        if num_ranks() == 1:
            return []
        if sys.__stderr__ is not None and not faulthandler.is_enabled():
            faulthandler.enable(sys.__stderr__)
        self._watch = Watch(
            dist.distributed_c10d._get_default_store(),
            rank(),
            num_ranks(),
            float(arguments.training.ddp_timeout),
            str(arguments.training.output_dir),
            holds_store=rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            is_abrupt="gloo" not in dist.get_backend(),
        )
        self._watch.start()
        return [Marks(self._watch)]

    def hurry(self) -> None:
        """Looks for a lost rank at once: a launcher that has lost one tells the others to end."""
        if self._watch is not None:
            self._watch.hurry()

    def __enter__(self) -> Watched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.leave(problem)


class Marks(TrainerCallback):
    """Tells the watch that the run has got on."""

    def __init__(self, watch: Watch) -> None:
        self._pulse = watch.pulse

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Notes a step that begins."""
        self._pulse.mark(state.global_step + 1, "training")

    def on_substep_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Notes a micro-batch."""
        self._pulse.mark(state.global_step + 1, "training")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Notes a step that is done."""
        self._pulse.mark(state.global_step, "training")

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Notes a micro-batch of an evaluation."""
        self._pulse.mark(state.global_step, "evaluating")

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Notes that an evaluation is done."""
        self._pulse.mark(state.global_step, "training")

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Notes that a checkpoint is written."""
        self._pulse.mark(state.global_step, "training")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Notes that the last step is done."""
        self._pulse.mark(state.global_step, "finishing")
