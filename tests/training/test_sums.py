"""metrics of a stage: sums and counts until a line is logged"""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import TrainerCallback

import luthier
from luthier.stages.next_token import NextToken
from luthier.stages.stage import Loss
from luthier.training.sums import MetricSums
from tests.training import faults


def test_a_mean_weighs_each_unit_once_however_it_was_cut():
    sums = MetricSums(("margin",))

    sums.add({"margin": (torch.tensor(6.0), 3)})
    sums.add({"margin": (torch.tensor(1.0), torch.tensor(1))})

    assert sums.means() == {"margin": 7 / 4}


def test_what_was_never_counted_has_no_mean():
    assert MetricSums(("margin",)).means() == {}


def counted(self, model, batch) -> Loss:
    loss = PLAIN(self, model, batch)
    lengths = batch.input_ids.numel() * torch.ones(())
    return Loss(loss.total, {"width": (lengths, 1), **loss.metrics})


PLAIN = NextToken.loss


class Widths(TrainerCallback):
    """Keeps the computed tokens and micro-batches of each step."""

    def __init__(self, stop_at: int = 0) -> None:
        self.logged: dict[int, float] = {}
        self.stop_at = stop_at

    def on_step_end(self, args, state, control, **others):
        if state.global_step == self.stop_at:
            raise KeyboardInterrupt

    def on_log(self, args, state, control, logs=None, **others):
        if "width" in logs:
            self.logged[state.global_step] = logs["width"]


@pytest.fixture
def counting():
    with (
        patch.object(NextToken, "loss", counted),
        patch.object(NextToken, "train_metrics", ("width",)),
        patch.object(NextToken, "eval_metrics", ("width",)),
    ):
        yield


def test_a_metric_is_logged_drawn_and_chosen_by_in_training_and_evaluation(
    llama_folder, tmp_path: Path, counting
):
    config = faults.config_of(
        llama_folder,
        faults.write_rows(tmp_path),
        tmp_path / "run",
        val_size=0.25,
        eval_strategy="steps",
        eval_steps=4,
        metric_for_best_model="width",
        plot_loss=True,
    )

    result = luthier.train(config)

    lines = [json.loads(x) for x in (tmp_path / "run/trainer_log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["width"]) for line in lines if "loss" in line)
    assert len([line for line in lines if "eval_width" in line]) >= 2
    assert (tmp_path / "run/training_width.png").is_file()
    assert (tmp_path / "run/training_eval_width.png").is_file()
    assert any("eval_width" in log for log in result.log_history)


def test_a_mean_over_steps_is_the_same_after_a_resume(llama_folder, tmp_path: Path, counting):
    rows = faults.write_rows(tmp_path)
    settings = {"logging_steps": 4, "save_steps": 2}
    whole, first, second = Widths(), Widths(stop_at=3), Widths()

    luthier.train(
        faults.config_of(llama_folder, rows, tmp_path / "whole", **settings), callbacks=[whole]
    )
    cut = faults.config_of(llama_folder, rows, tmp_path / "cut", **settings)
    with pytest.raises(KeyboardInterrupt):
        luthier.train(cut, callbacks=[first])
    luthier.train(cut, callbacks=[second])

    assert first.logged == {}
    assert second.logged == whole.logged
    assert set(whole.logged) == {4, 8}
