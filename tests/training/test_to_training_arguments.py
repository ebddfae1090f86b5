from __future__ import annotations

import pytest

from luthier.arguments.parse import parse_dict
from luthier.training.to_training_arguments import to_training_arguments


@pytest.fixture
def run(tmp_path):
    return {
        "model_name_or_path": "m",
        "output_dir": str(tmp_path),
        "do_train": True,
        "dataset": "d",
        "use_cpu": True,
    }


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

    library = to_training_arguments(parse_dict({**run, **values}))

    assert library.learning_rate == 1e-4
    assert library.bf16 is True
    assert library.report_to == []
    assert library.lr_scheduler_kwargs == {"power": 2}
    assert library.hub_token == "s3cret"
    assert library.dataloader_in_order is False
    assert library.optim == "adafactor"
    assert library.save_strategy == "no"


def test_the_mappings_of_the_user_stay_as_they_are(run):
    given = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}

    library = to_training_arguments(parse_dict({**run, "accelerator_config": given}))
    library.accelerator_config.gradient_accumulation_kwargs["num_steps"] = 1  # as Trainer does

    assert given == {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
