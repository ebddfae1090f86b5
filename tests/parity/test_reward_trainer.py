"""the same losses, rewards and weights as trl's RewardTrainer"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import luthier
from luthier.arguments.parse import parse_dict
from luthier.data.pipeline import load_datasets
from luthier.modeling.tokenizer import load_tokenizer
from luthier.stages.stage import STAGES
from luthier.training.encoder import fit_template
from tests.stages.test_rm import make_rows

trl = pytest.importorskip("trl", reason="trl is not installed: nothing is compared with it")

STEPS = 10
SAME = {"learning_rate": 1e-3, "max_steps": STEPS, "logging_steps": 1, "report_to": "none"}
PER_STEP = 4


@pytest.mark.parametrize("centering", [None, 0.05])
@pytest.mark.parametrize("has_margins", [False, True])
def test_ten_steps_are_those_of_trl(centering, has_margins, llama_folder: Path, tmp_path: Path):
    rows: list[dict[str, Any]] = [*make_rows(STEPS * PER_STEP, 5)]
    for number, row in enumerate(rows):
        row |= {"margin": number % 3 / 2} if has_margins else {}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = {
        "stage": "rm",
        "model_name_or_path": str(llama_folder),
        "template": "chatml",
        "finetuning_type": "full",
        "do_train": True,
        "dataset": str(tmp_path / "rows.json"),
        "output_dir": str(tmp_path / "ours"),
        "disable_shuffling": True,
        "center_rewards_coefficient": centering,
        "per_device_train_batch_size": PER_STEP,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        **SAME,
    }
    start = luthier.train(config | {"learning_rate": 0.0, "output_dir": str(tmp_path / "start")})

    ours = luthier.train(config)
    theirs, model = by_trl(config, start.output_dir, centering, tmp_path / "theirs")

    log = [record for record in ours.log_history if "loss" in record]
    assert len(log) == len(theirs) == STEPS
    for name in ("loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"):
        found, expected = ([record[name] for record in each] for each in (log, theirs))
        assert found == pytest.approx(expected, abs=1e-4), name
    weights = dict(ours.model.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)


def by_trl(
    config: dict[str, Any], start: Path, centering: float | None, folder: Path
) -> tuple[list[dict[str, float]], Any]:
    """Ten steps of trl on the tokens that ours learns from: what it logs, and its model."""
    arguments = parse_dict(config)
    tokenizer = load_tokenizer(arguments.model)
    template, _ = fit_template(arguments, tokenizer)
    stage = STAGES.get("rm")(arguments)
    stage.fit(tokenizer, template)
    pairs = load_datasets(arguments, stage).train
    assert pairs is not None
    rows = []
    for pair in pairs[range(STEPS * PER_STEP)]:
        chosen, rejected = (ids.tolist() for ids in pair.sequences())
        margins = pair.sequence_numbers.get("margin")
        margin = {} if margins is None else {"margin": float(margins[0])}
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected, **margin})
    args = trl.RewardConfig(
        output_dir=str(folder),
        per_device_train_batch_size=PER_STEP,
        lr_scheduler_type="constant",
        center_rewards_coefficient=centering,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        **SAME,
    )
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    trainer.train()
    return [record for record in trainer.state.log_history if "loss" in record], trainer.model
