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
from luthier.batching.batch import Step
from luthier.stages.next_token import NextToken
from luthier.stages.stage import Loss
from luthier.training.metrics import Meter, MetricSums, Work
from tests.rows import build_tree, pad
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


ROWS = [
    {"input_ids": [5, 9, 17, 4], "labels": [-100, -100, 17, 4]},
    {"input_ids": [5, 9], "labels": [-100, 9]},
]


def work_of(*micro_batches) -> Work:
    work = Work()
    work.add(Step(micro_batches, num_units=3, num_tokens=6, num_examples=2))
    return work


def test_padding_is_computed_and_not_real():
    work = work_of(pad(ROWS, 0))

    assert work == Work(1, examples=2, tokens=6, computed=8, learned=3, micro_batches=1)
    assert "8 computed (133 %, 33 % padding)" in work.describe("padded")


def test_a_shared_prefix_is_computed_once():
    work = work_of(build_tree(ROWS, share_prefixes=True), build_tree([], share_prefixes=True))

    assert (work.tokens, work.learned, work.micro_batches) == (6, 3, 2)
    assert work.computed < 6 + 2
    assert "shared) in 2 micro-batches a step, layout tree" in work.describe("tree")


def test_a_run_without_steps_has_numbers_too():
    assert Work().metrics()["train_micro_batches_per_step"] == 0
    assert Work().describe("tree")


def test_the_speed_is_that_since_the_last_reading_without_the_pauses():
    times = iter([0.0, 3.0, 5.0, 5.0, 5.0, 10.0, 10.0, 10.0, 10.0, 14.0, 14.0])
    meter = Meter(lambda: object(), lambda: 1000.0, lambda: next(times))

    meter.count(400)
    with meter.paused():
        pass
    first = meter.read(16000.0, 2)
    meter.count(100)
    meter.count(100)
    second = meter.read(24000.0, 2)

    assert first == {"tokens_per_second": 400 / 8, "mfu": 8000 / 8 / 1000}
    assert second == {"tokens_per_second": 200 / 4, "mfu": 4000 / 4 / 1000}
