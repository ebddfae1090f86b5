from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from luthier.arguments.data import DataArguments
from luthier.arguments.finetuning import FinetuningArguments
from luthier.arguments.generating import GeneratingArguments
from luthier.arguments.model import ModelArguments
from luthier.arguments.record import Arguments
from luthier.arguments.training import TrainingArguments
from luthier.checkpoints.fingerprint import versions
from luthier.training.report import save_metrics, write_model_card, write_run_record


class CountedData:
    def as_dict(self) -> dict[str, Any]:
        return {"user": {"kept": 80, "skipped": {"no answer": 2}, "sha256": "ab" * 32}}


@pytest.fixture
def arguments() -> Arguments:
    return Arguments(
        model=ModelArguments(
            model_name_or_path="../model/qwen/Qwen2-7B-Instruct", hf_hub_token="hf_abc"
        ),
        data=DataArguments(dataset="user, ./more/rows.jsonl", template="qwen"),
        finetuning=FinetuningArguments(lora_target="q_proj,v_proj"),
        training=TrainingArguments(output_dir="saves/x", do_train=True, learning_rate=2e-4),
        generating=GeneratingArguments(),
        passed_through={"push_to_hub_token": "hf_def", "mystery": {"api_key": "k", "depth": 3}},
        origins={
            "model_name_or_path": "run.yaml:1",
            "hf_hub_token": "run.yaml:2",
            "learning_rate": "command line",
            "mystery": "run.yaml:9",
        },
        notes=("warmup_steps = 12 (warmup_ratio 0.1 of 117 steps)",),
    )


def test_a_record_says_what_was_asked_where_and_with_what(
    tmp_path: Path, arguments: Arguments
) -> None:
    engine = {"layout": "tree", "shares_prefixes": True}

    path = write_run_record(tmp_path / "run", arguments, CountedData(), engine)

    record = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "run.json"
    assert record["arguments"]["learning_rate"] == 2e-4
    assert record["origins"]["learning_rate"] == "command line"
    assert record["settings"]["lora_target"] == ["q_proj", "v_proj"]
    assert record["settings"]["cutoff_len"] == 2048
    assert record["notes"] == list(arguments.notes)
    assert record["data"]["user"]["kept"] == 80
    assert record["engine"] == engine
    assert {"luthier", "python", "torch", "transformers", "peft"} <= record["versions"].keys()
    assert record["working_directory"] == str(Path.cwd())
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_secrets_are_never_written_down(tmp_path: Path, arguments: Arguments) -> None:
    text = write_run_record(tmp_path, arguments, None).read_text(encoding="utf-8")
    card = write_model_card(tmp_path, arguments, {}).read_text(encoding="utf-8")

    record = json.loads(text)
    assert "hf_abc" not in text + card
    assert "hf_def" not in text + card
    assert record["settings"]["mystery"] == {"api_key": "********", "depth": 3}
    assert record["settings"]["max_new_tokens"] == 1024
    assert record["settings"]["add_tokens"] == []


def test_the_first_rank_alone_writes(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")

    write_run_record(tmp_path, arguments)
    write_model_card(tmp_path, arguments, {"eval_loss": 1.0})
    save_metrics(tmp_path, "eval", {"eval_loss": 1.0})

    assert not list(tmp_path.iterdir())


def test_results_are_kept_by_split_and_together(tmp_path: Path) -> None:
    save_metrics(tmp_path, "train", {"train_loss": 0.5, "epoch": 3.0})
    save_metrics(tmp_path, "eval", {"eval_loss": 0.7})
    save_metrics(tmp_path, "eval", {"eval_loss": 0.6})
    save_metrics(tmp_path, "predict", {})

    read = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert read == {
        "train_results.json": {"epoch": 3.0, "train_loss": 0.5},
        "eval_results.json": {"eval_loss": 0.6},
        "all_results.json": {"epoch": 3.0, "eval_loss": 0.6, "train_loss": 0.5},
    }


def test_a_card_has_front_matter_that_the_hub_reads(tmp_path: Path, arguments: Arguments) -> None:
    metrics = {"eval_loss": 0.61234, "eval_runtime": 3.0, "eval_samples_per_second": 2.0}

    path = write_model_card(tmp_path / "my-run", arguments, metrics)

    card = ModelCard.load(path)
    assert card.data.base_model == "Qwen2-7B-Instruct"
    assert card.data.library_name == "peft"
    assert card.data.tags == ["luthier", "lora", "sft"]
    assert card.data.datasets == ["user", "rows.jsonl"]
    assert card.data.license is None
    assert "license" not in card.content
    assert "# my-run" in card.text
    assert "| learning_rate | 0.0002 |" in card.text
    assert "| lora_target | q_proj, v_proj |" in card.text
    assert "| eval_loss | 0.6123 |" in card.text
    assert "runtime" not in card.text
    assert "per_second" not in card.text
    assert "../model" not in card.content  # where the model lay is nobody else's business
    assert f"| torch | {versions()['torch']} |" in card.text


def test_a_hub_name_stays_and_full_training_is_of_transformers(
    tmp_path: Path, arguments: Arguments
) -> None:
    full = replace(
        arguments,
        model=ModelArguments(model_name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct"),
        finetuning=FinetuningArguments(finetuning_type="full"),
    )

    card = ModelCard.load(write_model_card(tmp_path, full, {}))

    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.library_name == "transformers"
    assert "lora" not in card.content


def test_evaluations_and_the_curve_are_shown(tmp_path: Path, arguments: Arguments) -> None:
    (tmp_path / "training_loss.png").write_bytes(b"")
    history = [
        {"step": 10, "loss": 2.0},
        {"step": 500, "eval_a_loss": 1.5},
        {"step": 500, "eval_b_loss": 1.25},
        {"step": 1000, "eval_a_loss": 1.0},
    ]

    text = write_model_card(tmp_path, arguments, {}, history).read_text(encoding="utf-8")

    assert "| step | eval_a_loss | eval_b_loss |" in text
    assert "| 500 | 1.5000 | 1.2500 |" in text
    assert "| 1,000 | 1.0000 |  |" in text
    assert "(training_loss.png)" in text
