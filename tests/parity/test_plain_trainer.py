"""the same losses and gradient norms as transformers' own Trainer, for every split of a step"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import luthier

SPLITS = ((1, 8), (8, 1), (2, 4))
STEPS = 20


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty-one conversations of very different lengths: epochs end in an uneven step."""
    words = "maple spruce bow string glue neck belly peg bridge scroll".split()
    file = tmp_path_factory.mktemp("data") / "rows.json"
    file.write_text(
        json.dumps(
            [
                {
                    "instruction": " ".join(words[: 1 + index % 7]),
                    "input": words[index % 10] * (index % 3),
                    "output": " ".join(words[(index * 3) % 10 :] * (1 + index % 4)),
                }
                for index in range(51)
            ]
        )
    )
    return file


class Start(TrainerCallback):
    """Keeps the weights and the encoded rows with which a run began."""

    def on_train_begin(self, args, state, control, model, train_dataloader, **kwargs):
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.dataset = train_dataloader.collate_fn.dataset


def train_ours(model: Path, rows: Path, output: Path, split: tuple[int, int], method: str):
    start = Start()
    result = luthier.train(
        {
            "model_name_or_path": str(model),
            "dataset": str(rows),
            "template": "chatml",
            "stage": "sft",
            "do_train": True,
            "finetuning_type": method,
            "freeze_trainable_layers": 1,
            "lora_target": "all",
            "cutoff_len": 96,
            "output_dir": str(output / f"{method}-{split[0]}"),
            "per_device_train_batch_size": split[0],
            "gradient_accumulation_steps": split[1],
            "tokens_per_micro_batch": 150,
            "learning_rate": 5e-3,
            "max_steps": STEPS,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "weight_decay": 0.01,
            "logging_steps": 1,
            "save_strategy": "no",
        },
        callbacks=[start],
    )
    return start, [record for record in result.log_history if "loss" in record]


def train_plainly(
    model: Path, output: Path, split: tuple[int, int], method: str, start: Start
) -> list[dict[str, float]]:
    """What a user of transformers and peft writes by hand."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if method == "lora":
        plain = peft.get_peft_model(
            plain,
            peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    if method == "freeze":
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_(".layers.1." in name)
    plain.load_state_dict(start.weights)
    trainer = Trainer(
        model=plain,
        args=TrainingArguments(
            output_dir=str(output / "plain"),
            per_device_train_batch_size=split[0],
            gradient_accumulation_steps=split[1],
            learning_rate=5e-3,
            max_steps=STEPS,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.01,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=datasets.Dataset.from_dict(
            {name: start.dataset.table[name] for name in ("input_ids", "labels")}
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
    )
    trainer.train()
    return [record for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
def test_losses_and_gradient_norms_are_those_of_the_plain_trainer(
    method, llama_folder, rows, tmp_path
):
    ours = {}
    for split in SPLITS:
        start, ours[split] = train_ours(llama_folder, rows, tmp_path, split, method)
        plain = train_plainly(llama_folder, tmp_path, split, method, start)

        assert len(ours[split]) == len(plain) == STEPS
        # float32 sums in another order: 1e-4 leaves room for what twenty steps make of 1e-7
        for name in ("loss", "grad_norm", "learning_rate"):
            assert [record[name] for record in ours[split]] == pytest.approx(
                [record[name] for record in plain], rel=1e-4
            )

    assert ours[1, 8][0]["loss"] > 1.05 * ours[1, 8][-1]["loss"]
    for split in SPLITS[1:]:
        for name in ("loss", "grad_norm"):
            assert [record[name] for record in ours[split]] == pytest.approx(
                [record[name] for record in ours[SPLITS[0]]], rel=1e-5
            )
