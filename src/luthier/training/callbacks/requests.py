"""What is asked of a run from outside, by signals and files -> a checkpoint at the step's end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState

from luthier import console
from luthier.checkpoints.control_files import answer, asked, take_up
from luthier.checkpoints.files import checkpoint_folder, list_checkpoints
from luthier.checkpoints.verify import saved_entry_of
from luthier.errors import Stopped
from luthier.processes.ranks import num_ranks
from luthier.processes.signals import Signals, end_process
from luthier.training.callbacks.pace import clock
from luthier.training.evaluate import EvaluationCut

NOTHING, SAVE, STOP = range(3)

OWED = "owes_evaluation"
"""Of what the trainer keeps in trainer_state.json: `Requests.owes_evaluation`."""

TELLING_S = 5.0
"""A step that takes longer is told of, since whoever has asked waits for it."""


class Requests(TrainerCallback):
    """Saves when asked to; when asked to stop, saves and ends the run with `Stopped`.

    Once a step all ranks agree on what any of them was asked, so a signal to one is enough. The
    checkpoint is an ordinary one, written where an ordinary one would be. An evaluation that is
    due is not waited for: the checkpoint owes it, and the run that goes on from there makes it
    first, so that nothing that hangs on it is lost.

    Args:
        grace_s: seconds between a signal and the end of a step.

    Attributes:
        is_stopping: whether all ranks have agreed to end.
        owes_evaluation: whether one was due at this step and was not made.
    """

    def __init__(self, grace_s: float) -> None:
        self.is_stopping = False
        self.owes_evaluation = False
        self._grace_s = grace_s
        self._signals: Signals | None = None
        self._output_dir = Path()
        self._group: Any = None
        self._saves_at_epochs_end = False
        self._only_model: bool | None = None
        self._may_cut = False
        self._begun_at = time.monotonic()
        self._step_s: float | None = None

    @contextmanager
    def listening(
        self, output_dir: Path, *, owns_process: bool, heard: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Hears signals in this block, and calls `heard` at the first one, on another thread.

        A second one ends a process that the run owns; else it does then what it would have done
        without this.
        """
        self._output_dir = output_dir

        def tell(name: str) -> None:
            heard()
            console.info(f"{name}: {self._plan()}")

        give_up = self._leave if owns_process else None
        with Signals(self._grace_s, tell, give_up) as self._signals:
            yield
        self._signals = None

    def progress(self) -> dict[str, bool]:
        """What a checkpoint keeps."""
        return {OWED: self.owes_evaluation}

    def restore(self, progress: Mapping[str, Any] | None) -> None:
        """Goes on behind a checkpoint; None behind one of another program."""
        self.owes_evaluation = bool(progress and progress.get(OWED))

    def raise_if_asked(self, state: TrainerState) -> None:
        """Raises Stopped if any rank was asked when its last step was made; every rank calls it."""
        if self._agree(state) == STOP:
            self._tell_askers(state)
            raise Stopped(
                f"stopped as asked: all {state.global_step:,} steps are made and the model is in "
                f"{self._output_dir}. What was to come after training is left out; the same "
                "command makes it."
            )

    def raise_stopped(self, state: TrainerState) -> None:
        """Raises Stopped for a run whose checkpoint is written."""
        folder = checkpoint_folder(self._output_dir, state.global_step)
        where = f"after step {state.global_step:,} of {state.max_steps:,}"
        if folder.is_dir():
            raise Stopped(
                f"stopped as asked, {where}; {folder} holds everything. The same command goes on "
                "from there.",
                folder,
            )
        good = next(iter(reversed(list_checkpoints(self._output_dir))), None)
        rest = f"The same command goes on from {good}." if good else "There is none before it."
        raise Stopped(f"stopped as asked, {where}, but {folder} could not be written. {rest}", good)

    # events

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Prepares the ranks' talk."""
        self._output_dir = Path(args.output_dir)
        self.is_stopping = self._saves_at_epochs_end = False
        if num_ranks() > 1 and self._group is None:
            # on the CPU, so that no accelerator waits for it
            has_gloo = "gloo" in str(dist.get_backend_config())
            self._group = dist.group.WORLD if has_gloo else dist.new_group(backend="gloo")

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Measures the step."""
        self.owes_evaluation = False
        self._begun_at = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Has a checkpoint written if somebody asks for it, and the run ended."""
        self._step_s = time.monotonic() - self._begun_at
        request = self._agree(state)
        if request != NOTHING:
            control.should_save = True
            self._only_model = args.save_only_model
            args.save_only_model = False
        if request == STOP:
            self._begin_to_stop(state, control)
        self._await_epochs_end(args, state, control)

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Leaves an evaluation when the run is to stop."""
        if self._may_cut and self._agree(state, only=STOP) == STOP:
            self._only_model = args.save_only_model
            args.save_only_model = False
            control.should_evaluate = True
            self._begin_to_stop(state, control)
            control.should_save = True
            self._await_epochs_end(args, state, control)
            raise EvaluationCut

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Writes the checkpoint that waited for the end of its epoch."""
        if self._saves_at_epochs_end:
            self._saves_at_epochs_end = False
            control.should_save = True
            if self.is_stopping:
                self.owes_evaluation |= control.should_evaluate
                control.should_evaluate = False
        elif self.is_stopping:  # in the middle of the epoch
            control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Tells those who asked."""
        if self._only_model is not None:
            args.save_only_model, self._only_model = self._only_model, None
        self._tell_askers(state)

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """In this block an evaluation raises `EvaluationCut` when the run is to stop."""
        self._may_cut = True
        try:
            yield
        finally:
            self._may_cut = False

    # the rest

    def _agree(self, state: TrainerState, only: int = NOTHING) -> int:
        """What any rank is asked to do; all ranks must call it."""
        is_signalled = self._signals is not None and self._signals.asked_by is not None
        words = asked(self._output_dir) if state.is_world_process_zero else set()
        request = STOP if is_signalled or "stop" in words else SAVE if words else NOTHING
        if num_ranks() > 1:
            flag = torch.tensor([request])
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
            request = int(flag.item())
        if request < only:
            return NOTHING
        for word in words:
            take_up(self._output_dir, word)
        return request

    def _begin_to_stop(self, state: TrainerState, control: TrainerControl) -> None:
        self.is_stopping = True
        control.should_training_stop = True
        self.owes_evaluation = control.should_evaluate
        control.should_evaluate = False
        if self._signals is not None:
            self._signals.answered()
        console.info(f"asked to stop: a checkpoint of step {state.global_step:,} is written first")

    def _await_epochs_end(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """Lets a checkpoint of an epoch's last step wait for what is logged or found at its end.

        The run that goes on from it begins the next epoch, and would never do that.
        """
        strategies = (args.logging_strategy, args.eval_strategy, args.save_strategy)
        is_last = state.epoch is not None and state.epoch == int(state.epoch)
        if control.should_save and is_last and "epoch" in strategies:
            control.should_save = False
            self._saves_at_epochs_end = True

    def _tell_askers(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            folder = checkpoint_folder(self._output_dir, state.global_step)
            name = folder.name if folder.is_dir() else None
            answer(self._output_dir, {"step": state.global_step, "checkpoint": name})

    def _plan(self) -> str:
        plan = "a checkpoint is written at the end of the running step, and the run ends"
        if self._step_s is not None and self._step_s > TELLING_S:
            plan += f"; the last step took {_duration(self._step_s)}"
        if self._step_s is not None and self._step_s > self._grace_s:
            plan += (
                f", and after {_duration(self._grace_s)} (stop_grace_seconds) the run ends without "
                "one"
            )
        return f"{plan}. Another signal ends it at once."

    def _leave(self, why: str) -> None:
        good = next(iter(reversed(list_checkpoints(self._output_dir))), None)
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a bar hides the cursor
        if not console.is_main_process():
            end_process(Stopped.exit_code, "")
        end_process(
            Stopped.exit_code,
            f"{shown}{why}: this run ends at once. "
            + (f"The same command goes on from {good}.\n" if good else "It left no checkpoint.\n"),
        )


def owes_evaluation(state: TrainerState) -> bool:
    """Whether the evaluation due at the step of a checkpoint's state was not made before it."""
    return bool(saved_entry_of(asdict(state)).get(OWED))


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)
