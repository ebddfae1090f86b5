from __future__ import annotations

import os

import pytest

from luthier.arguments.parse import parse_dict
from luthier.training.library_arguments import library_arguments


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    return {
        "model_name_or_path": "m",
        "output_dir": str(tmp_path),
        "do_train": True,
        "dataset": "d",
        "use_cpu": True,
    }


@pytest.mark.parametrize(
    ("name", "variable"),
    [("logging_dir", "TENSORBOARD_LOGGING_DIR"), ("swanlab_project", "SWANLAB_PROJECT")],
)
def test_what_trackers_read_from_the_environment_is_put_there(run, monkeypatch, name, variable):
    monkeypatch.setenv(variable, "before")

    library_arguments(parse_dict({**run, name: "mine"}))

    assert os.environ[variable] == "mine"


def test_every_value_arrives_with_its_type(run):
    values = {
        "learning_rate": "1e-4",
        "bf16": "true",
        "report_to": "none",
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": '{"power": 2}',
        "hub_token": "s3cret",
        "dataloader_in_order": "false",
        "adafactor": True,
        "save_strategy": "no",
    }

    library = library_arguments(parse_dict({**run, **values}))

    assert library.learning_rate == 1e-4
    assert library.bf16 is True
    assert library.report_to == []
    assert library.lr_scheduler_kwargs == {"power": 2}
    assert library.hub_token == "s3cret"
    assert library.dataloader_in_order is False
    assert library.optim == "adafactor"
    assert library.save_strategy == "no"
