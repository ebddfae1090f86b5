from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from luthier.training.callbacks.log_file import LogFileCallback, drop_lines_beyond
from tests import tiny


def read(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "trainer_log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def make_trainer(folder: Path, *callbacks: Any, **overrides: Any) -> Trainer:
    rows = [{"input_ids": [5, 6, 7, n + 8], "labels": [5, 6, 7, n + 8]} for n in range(12)]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 3,
        "eval_steps": 2,
        "eval_strategy": "steps",
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
    }
    return Trainer(
        model=tiny.make_llama(),
        args=TrainingArguments(output_dir=str(folder), **(settings | overrides)),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:4]),
        callbacks=[LogFileCallback, *callbacks],
    )


class ReadsWhileTraining(TrainerCallback):
    """Counts the lines on disk after each log."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **others: Any):
        self.seen.append(len(read(Path(args.output_dir))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReadsWhileTraining]:
    folder = tmp_path_factory.mktemp("run")
    reader = ReadsWhileTraining()
    make_trainer(folder, reader).train()
    return folder, reader


def test_every_log_is_on_disk_when_training_goes_on(finished) -> None:
    _, reader = finished

    assert reader.seen == list(range(1, 6 + 3 + 1 + 1))


def test_lines_carry_the_familiar_keys(finished) -> None:
    folder, _ = finished
    trained = [line for line in read(folder) if "loss" in line]
    evaluated = [line for line in read(folder) if "eval_loss" in line]

    assert [line["current_steps"] for line in trained] == [1, 2, 3, 4, 5, 6]
    assert [line["current_steps"] for line in evaluated] == [2, 4, 6]
    assert trained[2].keys() == {
        "current_steps",
        "total_steps",
        "loss",
        "lr",
        "grad_norm",
        "epoch",
        "percentage",
        "elapsed_time",
        "remaining_time",
    }
    assert trained[2]["percentage"] == 50.0
    assert trained[2]["total_steps"] == 6
    assert trained[5]["remaining_time"] == "0:00:00"


def test_a_resumed_run_goes_on_where_its_checkpoint_was_made(tmp_path: Path) -> None:
    make_trainer(tmp_path).train()
    first = read(tmp_path)

    make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))

    again = read(tmp_path)
    kept = [line for line in first if line["current_steps"] <= 3]
    assert again[: len(kept)] == kept
    assert [line["current_steps"] for line in again if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    make_trainer(tmp_path).train()
    make_trainer(tmp_path, max_steps=2).train()

    assert [line["current_steps"] for line in read(tmp_path) if "loss" in line] == [1, 2]


def test_a_lone_evaluation_adds_its_line(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)

    trainer.evaluate()

    (line,) = read(tmp_path)
    assert line["eval_loss"] > 0
    assert line["percentage"] == 100.0
    assert "remaining_time" not in line


def test_tokens_and_named_sets_are_told(tmp_path: Path) -> None:
    callback = LogFileCallback()
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state = TrainerState(global_step=5, max_steps=10)

    for logs in (
        {"loss": 0.0, "tokens_per_second": 123.4, "total_tokens": 999},
        {"eval_user_loss": 1.5, "eval_user_accuracy": 0.5, "eval_user_runtime": 3.0},
    ):
        callback.on_log(arguments, state, TrainerControl(), logs=logs)

    trained, evaluated = read(tmp_path)
    assert (trained["loss"], trained["throughput"], trained["total_tokens"]) == (0.0, 123.4, 999)
    assert (evaluated["eval_user_loss"], evaluated["eval_user_accuracy"]) == (1.5, 0.5)
    assert "eval_user_runtime" not in evaluated


def test_cut_off_and_foreign_lines_are_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "trainer_log.jsonl"
    whole = [json.dumps({"current_steps": step}) + "\n" for step in (1, 2, 3)]
    path.write_text("".join(whole) + "[1]\n" + '{"current_steps": 2', encoding="utf-8")

    drop_lines_beyond(path, 2)

    assert path.read_text(encoding="utf-8") == "".join(whole[:2])
    drop_lines_beyond(path, 2)
    assert path.read_text(encoding="utf-8") == "".join(whole[:2])
