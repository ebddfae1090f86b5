"""ten steps of stage dpo are those of trl's trainer, where its batches are whole steps"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from tests.parity.test_kto import STEPS, Rows
from tests.stages.test_dpo import config_of

trl = pytest.importorskip("trl", reason="trl is not installed here")


def train_theirs(model: Path, output: Path, rows: Any, **settings: Any) -> list[dict[str, float]]:
    prepared: dict[str, list[Any]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for ids, labels, (length, _) in zip(
        rows["input_ids"], rows["labels"], rows["lengths"], strict=True
    ):
        start = next(at for at, each in enumerate(labels) if each != -100)
        prepared["prompt_ids"].append(ids[:start])
        prepared["chosen_ids"].append(ids[start:length])
        prepared["rejected_ids"].append(ids[length + start :])

    class Trainer(trl.DPOTrainer):
        def _prepare_dataset(self, dataset, *others):
            return dataset

    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=trl.DPOConfig(
            output_dir=str(output / "theirs"),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=1,
            learning_rate=5e-3,
            lr_scheduler_type="linear",
            max_steps=STEPS,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            max_length=64,
            **settings,
        ),
        train_dataset=datasets.Dataset.from_dict(prepared),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer._get_train_sampler = lambda *given: torch.utils.data.SequentialSampler(
        trainer.train_dataset
    )
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize(
    ("loss", "ld_alpha"), [("sigmoid", None), ("ipo", None), ("sigmoid", 0.5), ("aot", None)]
)
def test_losses_and_rewards_are_those_of_trl(
    loss: str, ld_alpha: float | None, llama_folder: Path, tmp_path: Path
):
    rows = Rows()
    config = config_of(
        llama_folder,
        tmp_path,
        finetuning_type="full",
        gradient_accumulation_steps=1,
        disable_shuffling=True,
        max_steps=STEPS,
        learning_rate=5e-3,
        lr_scheduler_type="linear",
        pref_beta=0.3,
        pref_loss=loss,
        ld_alpha=ld_alpha,
    )
    ours = [log for log in luthier.train(config, callbacks=[rows]).log_history if "loss" in log]
    theirs = train_theirs(
        llama_folder, tmp_path, rows.rows, beta=0.3, loss_type=[loss], ld_alpha=ld_alpha
    )

    assert len(ours) == len(theirs) == STEPS
    assert ours[-1]["rewards/margins"] > 0.05, "something was learned"
    names = [
        "loss",
        "grad_norm",
        *(f"rewards/{each}" for each in ("chosen", "rejected", "margins")),
    ]
    names += [f"{of}/{each}" for of in ("logps", "logits") for each in ("chosen", "rejected")]
    for name in names:
        assert [log[name] for log in ours] == pytest.approx(
            [log[name] for log in theirs], abs=1e-4, rel=1e-4
        ), name
