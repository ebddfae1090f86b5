"""a loss that compares all sequences of a step, however the step is cut"""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import luthier
from luthier.errors import LuthierError
from luthier.modeling.reads import read_logps
from luthier.stages.next_token import NextToken
from luthier.stages.stage import Loss, Stage
from tests.launched import values_of_ranks
from tests.training import faults


def measure_sequences(stage: Any, model: Any, batch: Any) -> dict[str, torch.Tensor]:
    logps_N = read_logps(model, batch).logps_N
    sums_S = logps_N.new_zeros(len(batch.ends)).index_add(0, batch.sequences, logps_N)
    return {"logps": sums_S, "first": batch.ends.new_ones(len(batch.ends)).float()}


def step_loss(stage: Any, numbers: dict[str, torch.Tensor]) -> Loss:
    """Answers are to be likely, and alike."""
    logps_S = numbers["logps"]
    apart_S = logps_S - logps_S.mean()
    total = (apart_S**2).sum() / 100 - logps_S.sum()
    return Loss(total, {"spread": (apart_S.abs().sum().detach(), len(apart_S))})


@contextmanager
def coupled(**changes: Any):
    """Inside, stage sft has such a loss."""
    ours = {
        "loss": Stage.loss,
        "measure_sequences": measure_sequences,
        "step_loss": step_loss,
        "couples_sequences": True,
        "train_metrics": ("spread",),
        "eval_metrics": ("spread",),
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in (ours | changes).items():
            monkeypatch.setattr(NextToken, name, value, raising=False)
        yield


def values(result: Any, *names: str) -> list[float]:
    return [record[name] for record in result.log_history for name in names if name in record]


@pytest.fixture
def config(llama_folder: Path, tmp_path: Path) -> dict[str, Any]:
    rows = faults.write_rows(tmp_path)
    return faults.config_of(llama_folder, rows, tmp_path / "run", val_size=8, eval_strategy="steps")


def weights_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(str(config["output_dir"])) / "adapter_model.safetensors")


def test_a_step_in_pieces_is_the_step_as_a_whole(config, tmp_path: Path):
    whole = config | {
        "output_dir": str(tmp_path / "whole"),
        "tokens_per_micro_batch": 4096,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": 8,
    }
    alone = config | {"tokens_per_micro_batch": 1, "per_device_eval_batch_size": 1, "eval_steps": 1}
    with coupled(couples_sequences=False):
        one = luthier.train(whole | {"eval_steps": 1})
    with coupled():
        many = luthier.train(alone)

    assert len(values(one, "loss")) == 8
    assert values(many, "loss", "spread", "eval_loss", "eval_spread") == pytest.approx(
        values(one, "loss", "spread", "eval_loss", "eval_spread"), rel=1e-4
    )
    theirs = weights_of(whole)
    for name, weight in weights_of(alone).items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_step_is_told_of_once_though_memory_runs_out_behind_it(config):
    with coupled():
        plain = luthier.train(config | {"output_dir": f"{config['output_dir']}-plain"})
        read: list[bool] = []

        def measured(stage: Any, model: Any, batch: Any) -> dict[str, torch.Tensor]:
            read.append(torch.is_grad_enabled())
            if torch.is_grad_enabled() and batch.num_computed > 40:
                raise torch.OutOfMemoryError(faults.TOO_MUCH)
            return measure_sequences(stage, model, batch)

        couple, asked = Stage.couple, []

        def counted(stage: Any, found: Any) -> Any:
            asked.append(1)
            return couple(stage, found)

        with coupled(measure_sequences=measured), patch.object(Stage, "couple", counted):
            cut = luthier.train(config | {"eval_strategy": "no", "max_steps": 8})

    assert len(asked) == 8
    assert values(cut, "loss", "spread") == pytest.approx(values(plain, "loss", "spread"), rel=1e-4)


def test_the_micro_batch_whose_number_is_none_is_named(config):
    def spoiled(stage: Any, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        numbers = measure_sequences(stage, model, batch)
        wrong = torch.tensor([example.row == 5 for example in batch.examples] or [False])
        return {**numbers, "logps": numbers["logps"].masked_fill(wrong, math.inf)}

    with coupled(measure_sequences=spoiled), pytest.raises(LuthierError) as told:
        luthier.train(config | {"eval_strategy": "no", "val_size": 0})

    (line,) = [line for line in str(told.value).splitlines() if "rows.jsonl" in line]
    assert "rows.jsonl:6" in line
    assert "each of them alone" in str(told.value)


def on_this_rank(config: dict[str, Any]) -> dict[str, Any]:
    dist.init_process_group("gloo")
    with coupled():
        result = luthier.train(config)
    dist.barrier()
    return {
        "log": values(result, "loss", "spread", "eval_loss", "eval_spread"),
        "weights": {n: p.detach() for n, p in result.model.named_parameters() if p.requires_grad},
    }


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(config, tmp_path: Path):
    config |= {"save_strategy": "no", "eval_steps": 4}
    two = values_of_ranks(
        on_this_rank,
        2,
        config | {"output_dir": str(tmp_path / "two"), "gradient_accumulation_steps": 2},
    )
    with coupled():
        one = luthier.train(config)

    assert two[0]["log"] == pytest.approx(
        values(one, "loss", "spread", "eval_loss", "eval_spread"), rel=1e-4
    )
    theirs = dict(one.model.named_parameters())
    for name, weight in two[1]["weights"].items():
        torch.testing.assert_close(weight, theirs[name].detach(), rtol=1e-3, atol=1e-5, msg=name)
