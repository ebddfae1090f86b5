"""stage dpo: where a run begins, what it logs, and the gradients of a plain loop"""

# S sequences, T tokens, V vocabulary

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.stages.stage import Loss
from tests.stages.made import make_stage, short_run


def compared(folder: Path, count: int = 24) -> Path:
    """Pairs of different lengths, of which now the chosen and now the rejected is the longer."""
    file = folder / "pairs.jsonl"
    rows = [
        {
            "prompt": f"Count to {n % 5}.",
            "chosen": " ".join(map(str, range(n % 7 + 1))),
            "rejected": " ".join(map(str, range(9, n % 4, -1))),
        }
        for n in range(count)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def config_of(model: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    settings = {"tokens_per_micro_batch": 130, "learning_rate": 0.01, **settings}
    return short_run(model, folder, "dpo", compared(folder), **settings)


@pytest.mark.parametrize("precompute", [True, False], ids=["read before", "live"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapter_name_or_path": "trained before"},
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
        {"finetuning_type": "full"},
        {"ld_alpha": 0.5},
        {"pref_bco_weight": 0.0, "pref_loss": "aot"},
        {"lora_dropout": 0.5},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())) or "new adapter",
)
def test_a_run_begins_at_its_reference(
    settings: dict[str, Any], precompute: bool, llama_folder: Path, tmp_path: Path
):
    config = config_of(llama_folder, tmp_path, precompute_ref=precompute)
    if "adapter_name_or_path" in settings:
        luthier.train(config | {"output_dir": str(tmp_path / "before"), "stage": "dpo"})
        settings = {"adapter_name_or_path": str(tmp_path / "before")}

    first, second, *_ = luthier.train(config | settings).log_history

    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("chosen", "rejected", "margins"):
        assert first[f"rewards/{name}"] == pytest.approx(0, abs=1e-5)
    assert second["rewards/margins"] > 1e-3


def test_dropout_is_off_and_told(llama_folder: Path, tmp_path: Path, capsys):
    luthier.train(config_of(llama_folder, tmp_path, lora_dropout=0.25))

    assert "dropout 0.25 was set" in capsys.readouterr().err


def test_bco_is_shifted_by_all_earlier_rewards(llama_folder: Path, tmp_path: Path, monkeypatch):
    stage_class = type(make_stage("dpo"))
    plain, given = stage_class.step_loss, []

    def step_loss(stage: Any, numbers: Any) -> Loss:
        given.append(numbers["mean_reward"].unique().tolist())
        return plain(stage, numbers)

    monkeypatch.setattr(stage_class, "step_loss", step_loss)
    config = config_of(llama_folder, tmp_path, pref_bco_weight=1.0, tokens_per_micro_batch=4096)

    logs = [log for log in luthier.train(config).log_history if "loss" in log]

    assert given[0] == [0.0]
    rewards = [(log["rewards/chosen"] + log["rewards/rejected"]) / 2 for log in logs]
    assert given[1:3] == [
        pytest.approx([rewards[0]], abs=1e-6),
        pytest.approx([(rewards[0] + rewards[1]) / 2], rel=1e-4),
    ]


def test_what_is_told_of_a_step_reckoned_by_hand():
    stage = make_stage("dpo", pref_beta=0.5)
    numbers = {
        "logps": torch.tensor([-4.0, -6.0, -3.0, -1.0]),
        "lengths": torch.tensor([4.0, 2.0, 1.0, 5.0]),
        "reference": torch.tensor([-5.0, -4.0, -3.0, -2.0]),
        "logits": torch.tensor([8.0, 2.0, 2.0, -9.0]),
    }

    loss = stage.step_loss(numbers)

    assert {name: float(total) / float(count) for name, (total, count) in loss.metrics.items()} == {
        "rewards/chosen": (0.5 + 0.0) / 2,
        "rewards/rejected": (-1.0 + 0.5) / 2,
        "rewards/margins": (1.5 - 0.5) / 2,
        "rewards/accuracies": 0.5,
        "logps/chosen": -3.5,
        "logps/rejected": -3.5,
        "logits/chosen": 10 / 5,
        "logits/rejected": -7 / 7,
    }
    assert {*loss.metrics} == {*stage.train_metrics}


def test_a_loss_without_a_reference_tells_of_averages():
    stage = make_stage("dpo", pref_loss="orpo", pref_beta=0.5)
    numbers = {"logps": torch.tensor([-4.0, -6.0]), "lengths": torch.tensor([4.0, 2.0])}

    loss = stage.step_loss(numbers)

    seen = {name: float(total) / float(count) for name, (total, count) in loss.metrics.items()}
    assert not stage.needs_reference
    assert (seen["rewards/chosen"], seen["logps/rejected"], seen["sft_loss"]) == (-0.5, -3.0, 1.0)
    assert loss.total.item() == pytest.approx(1.0 + 0.5 * seen["odds_ratio_loss"])
