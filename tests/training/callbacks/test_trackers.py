"""each run has a run of its tracker, of all trackers that are installed"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import luthier
from luthier.arguments.training import TRACKERS, TrainingArguments
from luthier.optional import is_installed
from luthier.training.callbacks.trackers import _SwanLab, own_runs

PACKAGES = {name: package for name, package in TRACKERS.items() if package}

OFFLINE = {
    "CLEARML_OFFLINE_MODE": "1",
    "COMET_START_ONLINE": "0",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "NEPTUNE_MODE": "offline",
    "SWANLAB_MODE": "offline",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}

FOLDERS = {
    "codecarbon": "*/emissions.csv",
    "dvclive": "dvclive",
    "mlflow": "mlruns/0/*/artifacts",
    "swanlab": "swanlog/run-*",
    "tensorboard": "events*",
    "wandb": "wandb/offline-run-*",
}
"""What a run leaves in the folder that it runs in; in TensorBoard's case, in `logging_dir`."""


@pytest.fixture
def config(llama_folder: Path, tmp_path: Path, monkeypatch) -> dict[str, object]:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Count to {n}.", "output": str(n)} for n in range(12)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return {
        "model_name_or_path": str(llama_folder),
        "dataset": str(tmp_path / "rows.json"),
        "template": "chatml",
        "do_train": True,
        "val_size": 2,
        "do_eval": True,
        "cutoff_len": 64,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
    }


@pytest.mark.slow
@pytest.mark.parametrize("tracker", PACKAGES)
def test_each_run_of_a_process_has_a_run_of_its_tracker(tracker, config, tmp_path, monkeypatch):
    if not is_installed(PACKAGES[tracker]):
        pytest.skip(f"the package {PACKAGES[tracker]} is not installed")
    first, second = (
        config | {"report_to": tracker, "output_dir": str(tmp_path / name)}
        for name in ("first", "second")
    )

    luthier.train(first | {"logging_dir": str(tmp_path)})
    left = set(tmp_path.glob(FOLDERS.get(tracker, "*")))
    luthier.train(second)

    assert left
    added = set(tmp_path.glob(FOLDERS.get(tracker, "*"))) - left
    if tracker == "tensorboard":  # the second has no logging_dir
        assert not added
        assert list((tmp_path / "second" / "runs").glob("*/events*"))
    elif tracker in ("mlflow", "swanlab", "wandb"):
        assert len(left) == len(added) == 1


class Fake(ModuleType):
    """A tracker's package as wandb is one."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.run: object = None
        self.ended: list[int] = []

    def fail(self) -> None:
        self.run = "ours, which fails"
        raise KeyError

    def finish(self, exit_code: int) -> None:
        self.run = None
        self.ended.append(exit_code)


def test_what_begins_with_a_run_ends_with_it_and_what_was_there_goes_on(monkeypatch):
    wandb = Fake("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    with own_runs(TrainingArguments()):
        wandb.run = "ours"
    with pytest.raises(KeyError), own_runs(TrainingArguments()):
        wandb.fail()
    wandb.run = "the caller's"
    with own_runs(TrainingArguments()):
        pass

    assert wandb.ended == [0, 1]
    assert wandb.run == "the caller's"


def test_swanlab_is_asked_for_a_run_before_there_is_one():
    def get_run():
        raise RuntimeError("No active Run. Call swanlab.init() first.")

    asked = _SwanLab(SimpleNamespace(get_run=get_run, config="its own"))

    assert asked.get_run() is None
    assert asked.config == "its own"


def test_what_trackers_read_from_the_environment_is_there_for_the_run_alone(monkeypatch):
    monkeypatch.setenv("SWANLAB_PROJECT", "before")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    given = TrainingArguments(logging_dir="logs", swanlab_project="mine")

    with own_runs(given):
        seen = os.environ["TENSORBOARD_LOGGING_DIR"], os.environ["SWANLAB_PROJECT"]

    assert seen == ("logs", "mine")
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    assert os.environ["SWANLAB_PROJECT"] == "before"
