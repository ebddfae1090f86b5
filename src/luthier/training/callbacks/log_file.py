"""Each log of the trainer -> one line of trainer_log.jsonl, on disk before training goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from luthier.checkpoints.files import finite, write_whole
from luthier.training.callbacks.pace import Pace, clock

FILE_NAME = "trainer_log.jsonl"

RENAMED = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "predict_loss": "predict_loss",
    "reward": "reward",
    "rewards/accuracies": "accuracy",
    "accuracy": "accuracy",
    "eval_accuracy": "eval_accuracy",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
    "epoch": "epoch",
    "tokens_per_second": "throughput",
    "mfu": "mfu",
    "total_tokens": "total_tokens",
    "skipped_steps": "skipped_steps",
}
"""Names in a trainer's log -> keys of a line, as LLaMA-Factory's readers know them."""

OF_NAMED_SETS = ("_loss", "_accuracy")
"""How values of one of several evaluation sets end: `eval_NAME_loss`; they keep their names."""


class LogFileCallback(TrainerCallback):
    """Writes the log that survives: every line is flushed and synced when it is logged.

    A new run starts the file anew. A resumed one goes on in it; lines beyond the step it resumes
    from, and a line that was cut off, are dropped first. `elapsed_time` is that of this process,
    and `remaining_time` follows from its steps alone.
    """

    def __init__(self, metrics: Sequence[str] = ()) -> None:
        self._pace = Pace(0)
        self._renamed = {name: name for name in metrics} | RENAMED
        self._endings = tuple({*OF_NAMED_SETS, *(f"_{name}" for name in metrics)})

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Keeps the lines up to the step that training goes on from."""
        self._pace = Pace(state.global_step)
        if args.should_save:
            drop_lines_beyond(Path(args.output_dir) / FILE_NAME, state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Measures the step."""
        self._pace.step_ended(state.global_step)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """Writes one line, null for a number that is none."""
        if not args.should_save or not logs:
            return
        path = Path(args.output_dir) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(finite(self._line(state, logs)), allow_nan=False)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _line(self, state: TrainerState, logs: Mapping[str, float]) -> dict[str, Any]:
        values = {key: logs[name] for name, key in self._renamed.items() if name in logs}
        values |= {
            name: value
            for name, value in logs.items()
            if name.startswith("eval_") and name.endswith(self._endings)
        }
        share = state.global_step / state.max_steps if state.max_steps else 1.0
        remaining = self._pace.remaining_s(state.max_steps)
        return {
            "current_steps": state.global_step,
            "total_steps": state.max_steps,
            **values,
            "percentage": round(100 * share, 2),
            "elapsed_time": clock(self._pace.elapsed_s()),
            **({} if remaining is None else {"remaining_time": clock(remaining)}),
        }


def drop_lines_beyond(path: Path, step: int) -> None:
    """Removes the lines of later steps from a log, all at 0, and whatever is no whole line."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    write_whole(path, [line for line in text.splitlines(keepends=True) if _is_kept(line, step)])


def _is_kept(line: str, step: int) -> bool:
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return False
    if not line.endswith("\n") or not isinstance(values, dict):
        return False
    return 0 < step and values.get("current_steps", 0) <= step
