"""stage kto: its loss reckoned by hand, its means over steps and sets, what it says of rows"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.errors import LuthierError
from luthier.stages.stage import Stage
from tests.stages.made import make_stage, short_run


def marked(folder: Path, count: int = 24, every: int = 2) -> Path:
    """Answers of different lengths, of which one in `every` is unwanted."""
    file = folder / "marked.jsonl"
    rows = [
        {
            "prompt": f"Count to {n % 5}.",
            "completion": " ".join(map(str, range(n % 7 + 1))),
            "label": n % every != every - 1,
        }
        for n in range(count)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def config_of(model: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    settings = {"tokens_per_micro_batch": 80, "learning_rate": 0.02, **settings}
    return short_run(model, folder, "kto", marked(folder), **settings)


def numbers_of(ratios: list[float], labels: list[float], kl: float) -> dict[str, torch.Tensor]:
    reference = torch.tensor([-10.0, -20.0, -30.0])[: len(ratios)]
    return {
        "logps": (reference + torch.tensor(ratios)).requires_grad_(),
        "lengths": torch.tensor([5.0, 4.0, 10.0])[: len(ratios)],
        "reference": reference,
        "label": torch.tensor(labels),
        "kl": torch.full((len(ratios),), kl),
    }


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_step_reckoned_by_hand():
    stage = make_stage(
        "kto", pref_beta=0.5, kto_chosen_weight=2.0, kto_rejected_weight=3.0, pref_ftx=0.25
    )
    numbers = numbers_of([1.0, -2.0, 3.0], [1.0, 0.0, 1.0], kl=0.8)

    loss = stage.step_loss(numbers)
    loss.total.backward()

    # wanted: 2 (1 - sigmoid(0.5 (r - 0.8))), unwanted: 3 (1 - sigmoid(0.5 (0.8 - r)))
    first, second = 2 * (1 - sigmoid(0.5 * 0.2)), 3 * (1 - sigmoid(0.5 * 2.8))
    third = 2 * (1 - sigmoid(0.5 * 2.2))
    supervised = 0.25 * (9 / 5 + 27 / 10)
    assert loss.total.item() == pytest.approx(first + second + third + supervised)
    inner = sigmoid(0.5 * 0.2)
    assert numbers["logps"].grad is not None
    assert numbers["logps"].grad[0].item() == pytest.approx(
        -2 * 0.5 * inner * (1 - inner) - 0.25 / 5
    )
    seen = {name: float(total / count) for name, (total, count) in loss.metrics.items()}
    assert seen == pytest.approx(
        {
            "kl": 0.8,
            "rewards/chosen": 0.5 * (1 + 3) / 2,
            "rewards/rejected": -1.0,
            "logps/chosen": (-9 - 27) / 2,
            "logps/rejected": -22.0,
        }
    )
    assert stage.derive(seen)["rewards/margins"] == pytest.approx(2.0)


def test_a_kl_below_zero_counts_as_zero():
    stage = make_stage("kto")
    below, zero = (
        stage.step_loss(numbers_of([1.0, -2.0], [1.0, 0.0], kl=kl)).total for kl in (-3.0, 0.0)
    )

    assert torch.equal(below, zero)


def test_apo_zero_is_the_loss_without_a_kl():
    stage = make_stage("kto", kto_loss="apo_zero_unpaired", pref_beta=0.3)

    total = stage.step_loss(numbers_of([1.0, -2.0], [1.0, 0.0], kl=0.0)).total.item()

    assert total == pytest.approx(1 - sigmoid(0.3) + sigmoid(-0.6))
    assert not stage.mismatches_answers
    assert "kl" not in stage.train_metrics


def test_rows_of_one_kind_are_learned_and_told(llama_folder: Path, tmp_path: Path, capsys):
    config = config_of(llama_folder, tmp_path)
    marked(tmp_path, every=1000)
    result = luthier.train(config | {"val_size": 4, "eval_strategy": "steps"})

    assert "all rows pull one way" in capsys.readouterr().err
    assert all(math.isfinite(log["loss"]) for log in result.log_history if "loss" in log)
    assert not any("rewards/rejected" in log for log in result.log_history)


def test_the_weights_that_balance_the_kinds_are_told(llama_folder: Path, tmp_path: Path, capsys):
    config = config_of(llama_folder, tmp_path)
    marked(tmp_path, every=4)  # 18 wanted, 6 unwanted
    luthier.train(config)
    told = capsys.readouterr().err
    luthier.train(config | {"kto_rejected_weight": 2.5})
    balanced = capsys.readouterr().err

    assert "18 wanted answers, 6 unwanted, weighed 3.00 to 1 where the KTO paper" in told
    assert "kto_chosen_weight between 0.33 and 0.44" in told
    assert "kto_rejected_weight between 2.25 and 3.00" in told
    assert "weighed 1.20 to 1" in balanced
    assert "recommends" not in balanced


def test_a_step_of_one_row_is_refused(llama_folder: Path, tmp_path: Path):
    alone = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}

    with pytest.raises(LuthierError, match="a step has one row"):
        luthier.train(config_of(llama_folder, tmp_path, **alone))
    luthier.train(config_of(llama_folder, tmp_path, **alone, kto_loss="apo_zero_unpaired"))


def test_the_mean_is_over_other_answers_and_the_whole_step(
    llama_folder: Path, tmp_path: Path, monkeypatch
):
    """What the loss is given is the mean log-ratio of the step's prompts with the row before."""
    stage_class = type(make_stage("kto"))
    asked: list[tuple[list[int], list[int]]] = []
    measure = stage_class.measure

    def seen(stage: Stage, model: Any, batch: Any) -> Any:
        assert not torch.is_grad_enabled()
        asked.extend((each.input_ids.tolist(), each.labels.tolist()) for each in batch.examples)
        return measure(stage, model, batch)

    monkeypatch.setattr(stage_class, "measure", seen)
    learned: list[list[int]] = []
    read = stage_class.measure_sequences

    def learn(stage: Stage, model: Any, batch: Any) -> Any:
        learned.extend(list(map(int, each.labels)) for each in batch.examples)
        return read(stage, model, batch)

    monkeypatch.setattr(stage_class, "measure_sequences", learn)
    result = luthier.train(config_of(llama_folder, tmp_path, max_steps=1))

    def answers(labels: list[list[int]]) -> list[list[int]]:
        return sorted([n for n in each if n != -100] for each in labels)

    assert len(asked) == 8
    assert answers([labels for _, labels in asked]) == answers(learned)
    assert {tuple(ids) for ids, _ in asked}.isdisjoint({tuple(each) for each in learned})
    (log,) = [log for log in result.log_history if "loss" in log]
    assert log["kl"] == pytest.approx(0, abs=1e-6)
    assert log["loss"] == pytest.approx(0.5, abs=1e-6)
