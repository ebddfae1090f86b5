"""ten steps of stage kto are those of trl's trainer, where its batches are whole steps"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import luthier
from tests.stages.test_kto import config_of

trl = pytest.importorskip("trl", reason="trl is not installed here")

STEPS = 10


class Rows(TrainerCallback):
    """Keeps the rows that a run began with."""

    def on_train_begin(self, args, state, control, train_dataloader, **kwargs):
        self.rows = train_dataloader.collate_fn.dataset.table


def train_theirs(model: Path, output: Path, rows: Any, **settings: Any) -> list[dict[str, float]]:
    starts = [
        next(at for at, each in enumerate(labels) if each != -100) for labels in rows["labels"]
    ]
    parts = [
        (ids[:start], ids[start:]) for ids, start in zip(rows["input_ids"], starts, strict=True)
    ]
    size = 4
    answers = [answer for _, answer in parts]
    rotated = []
    for first in range(0, len(answers), size):
        block = answers[first : first + size]
        rotated += [block[-1], *block[:-1]]
    prepared = datasets.Dataset.from_dict(
        {
            "prompt_ids": [prompt for prompt, _ in parts],
            "completion_ids": answers,
            "KL_completion_ids": rotated,
            "label": [bool(label) for (label,) in rows["sequence_label"]],
        }
    )

    class Trainer(trl.KTOTrainer):
        def _prepare_dataset(self, dataset, *others):
            return dataset

    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=trl.KTOConfig(
            output_dir=str(output / "theirs"),
            per_device_train_batch_size=size,
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
        train_dataset=prepared,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_losses_rewards_and_kl_are_those_of_trl(loss: str, llama_folder: Path, tmp_path: Path):
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
        kto_loss=loss,
        kto_chosen_weight=0.8,
        kto_rejected_weight=1.2,
    )
    ours = [log for log in luthier.train(config, callbacks=[rows]).log_history if "loss" in log]
    theirs = train_theirs(
        llama_folder,
        tmp_path,
        rows.rows,
        beta=0.3,
        loss_type=loss,
        desirable_weight=0.8,
        undesirable_weight=1.2,
    )

    assert len(ours) == len(theirs) == STEPS
    assert abs(ours[-1]["rewards/chosen"]) > 0.05, "something was learned"
    names = ["loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins"]
    names += ["logps/chosen", "logps/rejected"] + (["kl"] if loss == "kto" else [])
    for name in names:
        assert [log[name] for log in ours] == pytest.approx(
            [log[name] for log in theirs], abs=1e-4, rel=1e-4
        ), name
