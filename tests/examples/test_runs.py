from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.arguments.parse import parse_command_line
from luthier.training.run import RunResult, run
from tests.architecture.house import ROOT

pytestmark = pytest.mark.filterwarnings("default")

SMALL = ("use_cpu=true", "max_samples=6", "cutoff_len=1024", "preprocessing_num_workers=1")
TRAINED = (
    "sft_lora",
    "sft_full",
    "sft_freeze",
    "quickstart",
    "pt",
    "pt_scratch",
    "dpo_lora",
    "orpo_lora",
    "kto_lora",
    "rm_lora",
)


def run_example(name: str, model: Path, folder: Path, *overrides: str) -> RunResult:
    words = (
        *SMALL,
        f"model_name_or_path={model}",
        f"output_dir={folder / 'out'}",
        f"cache_dir={folder / 'cache'}",
        *overrides,
    )
    return run(parse_command_line([str(ROOT / "examples" / f"{name}.yaml"), *words]))


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", TRAINED)
def test_an_example_trains_a_model(name: str, llama_folder: Path, tmp_path: Path):
    short = ("max_steps=2", "logging_steps=1", "eval_strategy=epoch")

    result = run_example(name, llama_folder, tmp_path, *short)

    assert result.metrics["train_loss"] > 0
    assert result.metrics["eval_loss"] > 0
    weights = {"adapter_model.safetensors", "model.safetensors"}
    left = {path.name for path in result.output_dir.iterdir()}
    assert weights & left, left
    assert {"trainer_log.jsonl", "training_loss.png", "run.json", "README.md"} <= left


def test_streamed_rows_train_a_model(llama_folder: Path, tmp_path: Path):
    short = ("max_steps=2", "eval_steps=2", "max_samples=40", "dataloader_num_workers=0")

    result = run_example("sft_streaming", llama_folder, tmp_path, *short)

    assert result.metrics["train_loss"] > 0
    assert result.metrics["eval_loss"] > 0


def test_predictions_follow_a_trained_adapter(llama_folder: Path, tmp_path: Path):
    trained = run_example("quickstart", llama_folder, tmp_path, "max_steps=1")

    result = run_example(
        "predict",
        llama_folder,
        tmp_path / "predict",
        f"adapter_name_or_path={trained.output_dir}",
        "max_new_tokens=4",
    )

    lines = (result.output_dir / "generated_predictions.jsonl").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "data/identity_eval.json").read_text(encoding="utf-8"))
    labels = [json.loads(line)["label"].strip() for line in lines.splitlines()]
    assert labels == [row["output"] for row in rows[:6]]
