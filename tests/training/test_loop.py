"""the loop as callbacks see it: every event, every flag, and what is counted"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations import integration_utils

import luthier
from tests.training import faults

EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]


@pytest.fixture
def config(llama_folder, tmp_path: Path) -> dict[str, Any]:
    return faults.config_of(
        llama_folder,
        faults.write_rows(tmp_path),
        tmp_path / "run",
        logging_steps=100,
        save_strategy="no",
        val_size=0.25,
    )


class Recorder(TrainerCallback):
    """Keeps the events with the step they were heard at, and sets flags when told to."""

    def __init__(self, flags: dict[tuple[str, int], str] | None = None) -> None:
        self.heard: list[tuple[str, int]] = []
        self.flags = flags or {}
        self.given: dict[str, Any] = {}

    def note(self, name, args, state, control, **given):
        self.heard.append((name, state.global_step))
        self.given = given
        if flag := self.flags.get((name, state.global_step)):
            setattr(control, flag, True)
        return control

    def steps(self, event: str) -> list[int]:
        return [step for name, step in self.heard if name == event]


for each in EVENTS:
    setattr(
        Recorder,
        each,
        lambda self, args, state, control, _name=each, **given: self.note(
            _name, args, state, control, **given
        ),
    )


def test_the_events_of_a_run_come_in_the_order_that_is_documented(config):
    recorder = Recorder()

    luthier.train(config | {"max_steps": 2, "tokens_per_micro_batch": 10_000}, [recorder])

    step = ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"]
    assert [name for name, _ in recorder.heard] == [
        "on_init_end",
        "on_train_begin",
        "on_epoch_begin",
        *step,
        *step,
        "on_epoch_end",
        "on_log",
        "on_train_end",
    ]
    given = recorder.given
    assert given["processing_class"].pad_token_id is not None
    assert isinstance(given["optimizer"].param_groups, list)
    assert set(given["lr_scheduler"].get_last_lr()) == {0.0}
    assert len(given["train_dataloader"]) == 4


def test_a_substep_ends_with_each_micro_batch_but_the_last(config):
    recorder = Recorder()

    result = luthier.train(config | {"max_steps": 4, "tokens_per_micro_batch": 20}, [recorder])

    num_micro_batches = 4 * result.metrics["train_micro_batches_per_step"]
    assert len(recorder.steps("on_substep_end")) == num_micro_batches - 4 > 0


@pytest.mark.parametrize(
    ("flag", "event"),
    [("should_log", "on_log"), ("should_save", "on_save"), ("should_evaluate", "on_evaluate")],
)
def test_a_flag_is_followed_once_where_it_is_set(flag: str, event: str, config):
    recorder = Recorder({("on_step_end", 3): flag})

    luthier.train(config | {"do_eval": False}, [recorder])

    assert [step for step in recorder.steps(event) if step < 8] == [3]


def test_should_training_stop_ends_the_run_behind_its_step(config):
    recorder = Recorder({("on_step_end", 3): "should_training_stop"})

    result = luthier.train(config, [recorder])

    assert recorder.steps("on_step_end") == [1, 2, 3]
    assert recorder.steps("on_epoch_end") == [3]
    assert recorder.steps("on_train_end") == [3]
    assert result.metrics["train_tokens"] > 0


def test_should_epoch_stop_goes_on_with_the_next_epoch(config):
    recorder = Recorder({("on_step_end", 2): "should_epoch_stop"})

    luthier.train(config | {"max_steps": -1, "num_train_epochs": 2.0}, [recorder])

    assert recorder.steps("on_epoch_begin") == [0, 2]
    assert recorder.steps("on_epoch_end") == [2, 6]


def test_patience_ends_a_run_that_gets_no_better(config):
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "eval_loss",
        "learning_rate": 1e-9,
    }
    patience = EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=1.0)

    result = luthier.train(config | settings, [patience])

    assert max(log["step"] for log in result.log_history) == 3


class Settings(dict[str, Any]):
    """A run's configuration as wandb holds it."""

    def update(self, told: dict[str, Any], **options: Any) -> None:  # type: ignore[override]
        super().update(told)


def test_a_tracker_hears_each_logged_number(config, monkeypatch: pytest.MonkeyPatch):
    logged: list[dict[str, float]] = []
    wandb: Any = ModuleType("wandb")
    wandb.run = None

    def init(**options: Any) -> None:
        wandb.run = SimpleNamespace(
            config={}, summary={}, url="", name=options.get("name"), _label=lambda code: None
        )

    wandb.init, wandb.log, wandb.finish = init, logged.append, lambda **options: None
    wandb.config, wandb.define_metric = Settings(), lambda *names, **options: None
    errors: Any = ModuleType("wandb.sdk.lib.config_util")
    errors.ConfigError = RuntimeError
    for module in (wandb, ModuleType("wandb.sdk"), ModuleType("wandb.sdk.lib"), errors):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)

    result = luthier.train(config | {"logging_steps": 2}, [integration_utils.WandbCallback])

    losses = [log["train/loss"] for log in logged if "train/loss" in log]
    assert losses == faults.losses(result)
    assert wandb.config["gradient_accumulation_steps"] == 4


def rate(result) -> float:
    """Examples that a run says it has trained on."""
    return result.metrics["train_samples_per_second"] * result.metrics["train_runtime"]


def test_speeds_count_what_was_trained_also_when_a_run_stops_early(config):
    whole = luthier.train(config | {"max_steps": 4})
    folder = f"{config['output_dir']}-short"
    short = luthier.train(
        config | {"output_dir": folder},
        [Recorder({("on_step_end", 3): "should_training_stop"})],
    )

    # 30 rows make an epoch of steps of 8, 8, 8 and 6
    assert rate(whole) == pytest.approx(30, rel=0.01)
    assert rate(short) == pytest.approx(24, rel=0.01)
    runtime = short.metrics["train_runtime"]
    assert short.metrics["train_steps_per_second"] * runtime == pytest.approx(3, rel=0.01)


def test_speeds_count_what_was_trained_since_a_resume(config):
    config |= {"save_strategy": "steps", "save_steps": 3}
    luthier.train(config | {"max_steps": 3})

    result = luthier.train(config | {"max_steps": 5})

    assert rate(result) == pytest.approx(6 + 8, rel=0.01)


def test_no_name_of_the_trainer_of_transformers_is_inherited():
    from luthier.training.loop import Trainer

    assert Trainer.__mro__ == (Trainer, object)


def test_checkpoints_keep_the_random_numbers_of_each_generator(tmp_path: Path):
    from luthier.training.state import load_random, save_random

    args: Any = SimpleNamespace(world_size=2, process_index=1, parallel_mode="distributed")
    torch.manual_seed(5)
    save_random(args, str(tmp_path))
    expected = torch.rand(3)

    torch.manual_seed(6)
    load_random(args, str(tmp_path))

    assert torch.equal(torch.rand(3), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["rng_state_1.pth"]
    load_random(SimpleNamespace(world_size=1, process_index=0), str(tmp_path))
