"""rows answered while a run trains: written with their step, and the run is the same"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.training.callbacks.samples import FILE_NAME
from tests.stages.made import short_run


@pytest.fixture
def config(llama_folder: Path, tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.json"
    rows.write_text(
        json.dumps([{"instruction": f"what is {n}?", "output": f"it is {n}"} for n in range(40)])
    )
    return short_run(
        llama_folder,
        tmp_path,
        "sft",
        rows,
        learning_rate=0.05,
        lora_dropout=0.2,
        max_steps=4,
        val_size=6,
        eval_strategy="steps",
        eval_steps=2,
        do_sample=True,
        max_new_tokens=8,
        compute_accuracy=True,
        save_strategy="steps",
        save_steps=2,
    )


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE_NAME).read_text().splitlines()]


def test_fixed_rows_are_answered_at_each_evaluation_and_training_is_the_same(
    config: dict[str, Any], tmp_path: Path
) -> None:
    plain, sampled = tmp_path / "plain", tmp_path / "sampled"
    luthier.train(config | {"output_dir": str(plain)})
    asked = config | {"eval_generate_samples": 3, "output_dir": str(sampled)}
    luthier.train(asked | {"eval_on_start": True})

    weights = [load_file(each / "adapter_model.safetensors") for each in (plain, sampled)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = samples(sampled)
    assert [row["step"] for row in rows] == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    assert [row["prompt"] for row in rows[:3]] == [row["prompt"] for row in rows[3:6]]
    assert all(row["label"].startswith("it is") for row in rows)
    assert len({row["predict"] for row in rows}) > 3


def test_a_run_that_goes_on_writes_no_step_twice(config: dict[str, Any], tmp_path: Path) -> None:
    config |= {"eval_generate_samples": 2, "lr_scheduler_type": "constant"}
    config |= {"overwrite_output_dir": False}
    luthier.train(config)
    whole = samples(tmp_path / "run")
    for folder in (tmp_path / "run").glob("checkpoint-4"):
        (folder / "MANIFEST.json").unlink()

    luthier.train(config | {"resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-2")})

    assert samples(tmp_path / "run") == whole
