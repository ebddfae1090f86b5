"""answers of a whole run equal plain transformers generating them one by one"""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from tests import tiny

NUM_ROWS = 40
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def decided_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with weights so large that its answers differ from prompt to prompt."""
    model = tiny.make_llama()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
    return tiny.save(tmp_path_factory.mktemp("models") / "decided llama", model)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = "maple spruce bow string glue neck belly peg bridge scroll".split()
    file = tmp_path_factory.mktemp("data") / "rows.json"
    file.write_text(
        json.dumps(
            [
                {
                    "instruction": f"{index} " + " ".join(words[index % 10 :] * (1 + index % 5)),
                    "output": " ".join(words[: 1 + index % 7]),
                    "system": f"Luthier {index}." if index % 3 == 0 else "",
                }
                for index in range(NUM_ROWS)
            ]
        )
    )
    (file.parent / "dataset_info.json").write_text(
        json.dumps({"rows": {"file_name": "rows.json", "columns": {"system": "system"}}})
    )
    return file


def chatml(row: dict[str, str]) -> str:
    system = f"<|im_start|>system\n{row['system']}<|im_end|>\n" if row["system"] else ""
    question = f"<|im_start|>user\n{row['instruction']}<|im_end|>\n"
    return f"{system}{question}<|im_start|>assistant\n"


def one_by_one(model: torch.nn.Module, folder: Path, prompts: list[str]) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        whole = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"]),
            pad_token_id=tokenizer.pad_token_id,
        )
        answers.append(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_run_predicts_what_transformers_generates_one_by_one(
    tmp_path: Path, decided_llama: Path, rows: Path, is_trained: bool
) -> None:
    config: dict[str, object] = {
        "model_name_or_path": str(decided_llama),
        "dataset_dir": str(rows.parent),
        "eval_dataset": "rows",
        "template": "chatml",
        "do_predict": True,
        "predict_with_generate": True,
        "do_sample": False,
        "max_new_tokens": NEW_TOKENS,
        "per_device_eval_batch_size": 7,
        "output_dir": str(tmp_path / "run"),
    }
    if is_trained:
        config |= {"do_train": True, "dataset": "rows", "max_steps": 3, "learning_rate": 1e-3}

    result = luthier.train(config)

    model = AutoModelForCausalLM.from_pretrained(decided_llama, dtype=torch.float32)
    if is_trained:
        model = peft.PeftModel.from_pretrained(model, tmp_path / "run")
    given = json.loads(rows.read_text())
    expected = one_by_one(model.eval(), decided_llama, [chatml(row) for row in given])
    lines = (tmp_path / "run" / "generated_predictions.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert [row["predict"] for row in written] == expected
    assert [row["prompt"] for row in written] == [chatml(row) for row in given]
    assert [row["label"].strip() for row in written] == [row["output"] for row in given]
    assert len(set(expected)) > NUM_ROWS / 2
    scores = json.loads((tmp_path / "run" / "predict_results.json").read_text())
    assert scores["predict_rouge-l"] == result.metrics["predict_rouge-l"]
