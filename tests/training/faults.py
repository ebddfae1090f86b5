"""runs of a tiny model in which something goes wrong at a chosen step"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import TrainerCallback

import luthier
from luthier.batching.batch import MicroBatch
from luthier.stages.next_token import NextToken
from luthier.stages.stage import Stage
from luthier.training.run import RunResult

TOO_MUCH = "CUDA out of memory. Tried to allocate 20.00 GiB."


def write_rows(folder: Path, num_rows: int = 40) -> Path:
    """Counting rows of nine lengths."""
    file = folder / "rows.jsonl"
    rows = [
        {"instruction": f"Count to {n % 9}.", "output": " ".join(map(str, range(n % 9 + 1)))}
        for n in range(num_rows)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def config_of(model: Path, rows: Path, output: Path, **settings: object) -> dict[str, object]:
    """A short LoRA run, a logged line and a checkpoint for each step."""
    return {
        "model_name_or_path": str(model),
        "dataset": str(rows),
        "template": "chatml",
        "do_train": True,
        "cutoff_len": 64,
        "output_dir": str(output),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "learning_rate": 5e-3,
        "max_steps": 8,
        "logging_steps": 1,
        "save_steps": 1,
        "report_to": "none",
        "tokens_per_micro_batch": 80,
        **settings,
    }


class Clock(TrainerCallback):
    """Knows the step that is computed, from 1; 0 outside of training."""

    def __init__(self) -> None:
        self.step = 0

    def on_step_begin(self, args, state, control, **others):
        self.step = state.global_step + 1
        self.model = others["model"]

    def on_step_end(self, args, state, control, **others):
        self.step = 0


@contextmanager
def losses_through(change: Callable):
    """Inside, `change(loss, batch)` gives what the stage gives for a micro-batch."""
    plain = NextToken.loss

    def changed(self, model, batch):
        return change(plain(self, model, batch), batch)

    with patch.object(NextToken, "loss", changed):
        yield


def train(
    config: dict[str, object], change: Callable, callbacks: Sequence[TrainerCallback] = ()
) -> RunResult:
    """A run in which `change(loss, batch, step)` gives the loss of each micro-batch."""
    clock = Clock()
    with losses_through(lambda loss, batch: change(loss, batch, clock.step)):
        return luthier.train(config, callbacks=[clock, *callbacks])


def out_of_memory_at(step: int, above: int) -> Callable:
    """A device that has room for `above` computed tokens from that step on."""

    def change(loss, batch, now):
        if now >= step and batch.num_computed > above:
            raise torch.OutOfMemoryError(TOO_MUCH)
        return loss

    return change


def not_a_number_at(step: int, row_tokens: list[int]) -> Callable:
    """A loss that is NaN, with a finite gradient, where a micro-batch holds these tokens."""

    def change(loss, batch, now):
        ids = batch.input_ids.flatten().tolist()
        width = len(row_tokens)
        holds = any(ids[at : at + width] == row_tokens for at in range(len(ids)))
        return replace(loss, total=loss.total + math.nan) if now == step and holds else loss

    return change


def losses(result: RunResult) -> list[float]:
    """Those that were logged."""
    return [record["loss"] for record in result.log_history if "loss" in record]


@contextmanager
def full_above(stage: type[Stage], most: int) -> Iterator[list[int]]:
    """Memory for micro-batches of so many computed tokens in training; gives those that failed."""

    def limited(compute: Callable[..., Any]) -> Any:
        def computed(self: Stage, model: Any, batch: MicroBatch) -> Any:
            if model.training and batch.num_computed > most:
                failed.append(batch.num_computed)
                raise torch.OutOfMemoryError(TOO_MUCH)
            return compute(self, model, batch)

        return computed

    failed: list[int] = []
    kept = {name: getattr(stage, name) for name in ("measure", "measure_sequences")}
    with patch.multiple(stage, **{name: limited(each) for name, each in kept.items()}):
        yield failed
