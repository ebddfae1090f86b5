"""A run's progress on the terminal: a live bar there, plain lines elsewhere."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerState

from luthier import console
from luthier.training.callbacks.pace import Pace, clock

HIDDEN = {"total_flos", "total_tokens", "num_input_tokens_seen"}
"""Values of a log that the terminal does not show, beside speeds other than tokens per second."""


class ProgressCallback(TrainerCallback):
    """Shows step, loss, learning rate, tokens per second and time left.

    On a terminal, by default standard error, one bar is redrawn after every step, and results of
    evaluations are printed above it; without one every log is a line. The time left follows from
    the last steps of this process.
    """

    def __init__(self, terminal: Console | None = None) -> None:
        self._terminal = terminal or Console(stderr=True)
        self._pace: Pace | None = None
        self._live: Progress | None = None
        self._training: TaskID | None = None
        self._evaluating: TaskID | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Draws the bar, at the step that training goes on from."""
        self._pace = Pace(state.global_step)
        if state.is_world_process_zero and self._terminal.is_terminal:
            self._training = self._bar().add_task(
                "training", total=state.max_steps, completed=state.global_step, facts="", left=""
            )
            self._redraw()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Moves the bar."""
        if self._pace is not None:
            self._pace.step_ended(state.global_step)
        if self._live is not None and self._training is not None:
            self._live.update(
                self._training, completed=state.global_step, left=self._left(state.max_steps)
            )
            self._redraw()

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """Shows the values of a log."""
        if not state.is_world_process_zero or not logs:
            return
        facts = describe(logs)
        if self._live is not None and self._training is not None and "loss" in logs:
            self._live.update(self._training, facts=facts)
            self._redraw()
        elif facts:
            parts = [f"step {state.global_step:,}/{state.max_steps:,}"] if state.max_steps else []
            parts.append(facts)
            if "loss" in logs:
                parts.append(self._left(state.max_steps))
            console.info(" | ".join(part for part in parts if part))

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Counts the micro-batches of an evaluation."""
        if not (state.is_world_process_zero and self._terminal.is_terminal):
            return
        if self._evaluating is None:
            self._evaluating = self._bar().add_task("evaluating", total=None, facts="", left="")
        self._bar().advance(self._evaluating)
        self._redraw()

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Takes the evaluation's bar away."""
        if self._live is not None and self._evaluating is not None:
            self._live.remove_task(self._evaluating)
            self._evaluating = None
            if self._training is None:
                self.close()

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Leaves the bar as it stands."""
        self.close()
        self._pace = None

    def close(self) -> None:
        """Gives the terminal back; also done when the program ends in the middle of a run."""
        if self._live is not None:
            atexit.unregister(self.close)
            self._live.stop()
        self._live = self._training = self._evaluating = None

    def _bar(self) -> Progress:
        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TextColumn("{task.fields[left]}"),
                console=self._terminal,
                auto_refresh=False,
            )
            self._live.start()
            atexit.register(self.close)
        return self._live

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _left(self, total_steps: int) -> str:
        remaining = None if self._pace is None else self._pace.remaining_s(total_steps)
        return "" if remaining is None else f"{clock(remaining)} left"


def describe(logs: Mapping[str, float]) -> str:
    """The values of one log as short text: `loss 1.2345 | lr 1.0e-04 | 1,234 tokens/s`."""
    return " | ".join(
        _fact(name, value)
        for name, value in logs.items()
        if name not in HIDDEN and not name.endswith(("_samples_per_second", "_steps_per_second"))
    )


def _fact(name: str, value: float) -> str:
    if name == "learning_rate":
        return f"lr {value:.1e}"
    if name == "tokens_per_second":
        return f"{value:,.0f} tokens/s"
    if name == "mfu":
        return f"mfu {100 * value:.0f} %"
    if name.endswith("_runtime"):
        return f"{name} {clock(value) if value >= 60 else f'{value:.1f} s'}"
    if name == "epoch":
        return f"epoch {value:.2f}"
    return f"{name} {value:#.4g}" if isinstance(value, float) else f"{name} {value}"
