from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from luthier.training.callbacks.progress import ProgressCallback, describe

LOG = {"loss": 1.23456, "grad_norm": 0.5, "learning_rate": 1e-4, "tokens_per_second": 1234.5}


def play(callback: ProgressCallback, first: int = 0, steps: int = 3) -> None:
    """The events of a run that goes on from step `first`, evaluates, and ends."""
    arguments: Any = TrainingArguments(output_dir="unused", use_cpu=True)
    control = TrainerControl()
    state = TrainerState(global_step=first, max_steps=first + steps)
    callback.on_train_begin(arguments, state, control)
    for step in range(first + 1, first + steps + 1):
        state.global_step = step
        callback.on_step_end(arguments, state, control)
        callback.on_log(arguments, state, control, logs=LOG)
    callback.on_prediction_step(arguments, state, control)
    callback.on_log(arguments, state, control, logs={"eval_loss": 2.5, "eval_runtime": 61.0})
    callback.on_evaluate(arguments, state, control)
    callback.on_train_end(arguments, state, control)


def test_without_a_terminal_every_log_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    play(ProgressCallback(Console(file=io.StringIO())), first=1000)

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "step 1,001/1,003 | loss 1.235 | grad_norm 0.5000 | lr 1.0e-04 | 1,234 tokens/s"
        " | 0:00:00 left"
    )
    assert lines[-1] == "step 1,003/1,003 | eval_loss 2.500 | eval_runtime 0:01:01"
    assert len(lines) == 4


def test_on_a_terminal_one_bar_holds_the_steps_and_the_last_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = io.StringIO()

    play(ProgressCallback(Console(file=screen, force_terminal=True, width=160)), first=7)

    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "7/10" in drawn
    last = [line for line in drawn.splitlines() if "training" in line][-1]
    assert "10/10" in last
    assert "loss 1.235" in last
    assert "1,234 tokens/s" in last
    assert "0:00:00 left" in last
    assert "evaluating" in drawn
    assert "step 10/10 | eval_loss 2.5" in drawn
    assert capsys.readouterr().err == ""


def test_a_lone_evaluation_takes_its_bar_away() -> None:
    screen = io.StringIO()
    callback = ProgressCallback(Console(file=screen, force_terminal=True, width=80))
    arguments: Any = TrainingArguments(output_dir="unused", use_cpu=True)

    callback.on_prediction_step(arguments, TrainerState(), TrainerControl())
    callback.on_evaluate(arguments, TrainerState(), TrainerControl())

    assert "evaluating" in screen.getvalue()
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    callback = ProgressCallback(Console(file=io.StringIO()))
    arguments: Any = TrainingArguments(output_dir="unused", use_cpu=True)
    state = TrainerState(max_steps=3, is_world_process_zero=False)

    callback.on_train_begin(arguments, state, TrainerControl())
    callback.on_log(arguments, state, TrainerControl(), logs=LOG)

    assert capsys.readouterr().err == ""


def test_a_loss_of_zero_is_shown() -> None:
    assert describe({"loss": 0.0, "total_flos": 1e18}) == "loss 0.000"


def test_utilisation_is_a_share() -> None:
    assert describe({"tokens_per_second": 1234.5, "mfu": 0.523}) == "1,234 tokens/s | mfu 52 %"


def test_speeds_beside_tokens_per_second_are_left_out() -> None:
    logs = {"eval_loss": 1.0, "eval_samples_per_second": 3.0, "eval_steps_per_second": 1.0}

    assert describe(logs) == "eval_loss 1.000"


def test_epochs_are_fractions_and_short_times_are_seconds() -> None:
    assert describe({"eval_runtime": 0.25, "epoch": 1.3333}) == "eval_runtime 0.2 s | epoch 1.33"
