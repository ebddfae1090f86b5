"""the same steps by trl's trainers, on the rows as a run encodes them"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import luthier
from benchmarks import peers, preference
from luthier.example import read_examples

trl = pytest.importorskip("trl", reason="trl is not installed: nothing is compared with it")

STEPS, PER_STEP = 10, 4

SAME: dict[str, Any] = {
    "per_device_train_batch_size": PER_STEP,
    "gradient_accumulation_steps": 1,
    "max_steps": STEPS,
    "logging_steps": 1,
    "lr_scheduler_type": "linear",
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
}
"""Settings that both know by the same name."""

OURS = SAME | {"finetuning_type": "full", "disable_shuffling": True}


def train_ours(config: dict[str, Any]) -> tuple[list[dict[str, float]], Any]:
    """What is logged of each step, and the model."""
    result = luthier.train(config | OURS)
    return [log for log in result.log_history if "loss" in log], result.model


def train_theirs(
    config: dict[str, Any], start: Path, **settings: Any
) -> tuple[list[dict[str, float]], Any]:
    """The same of trl's trainer, where each of its batches is a step.

    Args:
        config: of our run.
        start: the model that it begins with.
        settings: of trl's own names.
    """
    stage = config["stage"]
    _, table = peers.encode(config | OURS)
    examples = read_examples(table.with_format("arrow")[:])
    rows = [preference.form(stage, each) for each in examples]
    for first in range(0, len(rows), PER_STEP) if stage == "kto" else ():
        together = rows[first : first + PER_STEP]
        for row, before in zip(together, [together[-1], *together[:-1]], strict=True):
            row["KL_completion_ids"] = before["completion_ids"]
    kind: Any = AutoModelForSequenceClassification if stage == "rm" else AutoModelForCausalLM
    model, reference = (kind.from_pretrained(start, dtype=torch.float32) for _ in range(2))
    held = {} if stage == "rm" else {"ref_model": reference}
    trainer = preference.trainer_of(stage)(
        model=model,
        **held,
        args=preference.settings_of(stage)(
            **SAME,
            learning_rate=config["learning_rate"],
            output_dir=f"{config['output_dir']}-theirs",
            train_sampling_strategy="sequential",
            bf16=False,
            gradient_checkpointing=False,
            max_length=config["cutoff_len"],
            **settings,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log], trainer.model


def assert_same(ours: list[dict[str, float]], theirs: list[dict[str, float]], *names: str) -> None:
    """Each of the numbers, of every step, within 1e-4."""
    assert len(ours) == len(theirs) == STEPS
    for name in names:
        found, expected = ([log[name] for log in each] for each in (ours, theirs))
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-4), name
