"""scores, losses and metrics of a reward model are the same however a step is cut"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoTokenizer

import luthier
from luthier.optional import is_installed
from luthier.stages.stage import STAGES
from tests.invariants.ways import WAYS
from tests.launched import values_of_ranks
from tests.stages.test_rm import METRICS, lines, load, make_rows, scores_of
from tests.training.faults import full_above


@pytest.fixture(scope="module")
def config(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Twenty-three pairs, so that the last step of an epoch is not full; some have a margin."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, count in (("rows", 23), ("held", 9)):
        rows: list[dict[str, Any]] = [*make_rows(count, count)]
        for number, row in enumerate(rows):
            row["margin"] = number % 3 / 2
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return {
        "stage": "rm",
        "model_name_or_path": str(llama_folder),
        "template": "chatml",
        "do_train": True,
        "dataset": str(folder / "rows.json"),
        "eval_dataset": str(folder / "held.json"),
        "center_rewards_coefficient": 0.1,
        "cutoff_len": 128,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "optim": "sgd",  # Adam would move weights by the sign of what rounding leaves of gradients
        "learning_rate": 0.5,
        "max_steps": 6,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "do_predict": True,
        "save_strategy": "no",
        "report_to": "none",
        "plot_loss": False,
    }


def numbers(result: Any) -> dict[str, Any]:
    """All that a run says of what it has learned."""
    names = ("loss", *METRICS)
    log = [
        record[name]
        for record in result.log_history
        for name in (*names, *(f"eval_{each}" for each in names), "grad_norm")
        if name in record
    ]
    weights = {n: p.detach().clone() for n, p in result.model.named_parameters() if p.requires_grad}
    return {"log": log, "weights": weights, "scores": lines(result.output_dir)}


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(found["log"]) == len(expected["log"]) == 3 * 7 + 3 * 6
    assert found["log"] == pytest.approx(expected["log"], rel=1e-5, abs=1e-5)
    assert any("score" in name for name in expected["weights"])
    for name, weight in found["weights"].items():
        torch.testing.assert_close(weight, expected["weights"][name], rtol=1e-5, atol=1e-5)
    for one, other in zip(found["scores"], expected["scores"], strict=True):
        assert one["origin"] == other["origin"]
        assert one["chosen"] == pytest.approx(other["chosen"], abs=1e-5)


@pytest.fixture(scope="module")
def whole(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return numbers(luthier.train(config | {"output_dir": str(tmp_path_factory.mktemp("whole"))}))


@pytest.mark.parametrize("way", WAYS)
def test_a_step_in_pieces_is_the_step_as_a_whole(way, config, whole, tmp_path: Path):
    check(numbers(luthier.train(config | WAYS[way] | {"output_dir": str(tmp_path)})), whole)


def test_memory_that_runs_out_changes_nothing(config, whole, tmp_path: Path):
    settings = {"tokens_per_micro_batch": 4096, "output_dir": str(tmp_path)}
    with full_above(STAGES.get("rm"), 90) as failed:
        found = numbers(luthier.train(config | settings))

    assert failed
    check(found, whole)


def train_on_ranks(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    dist.init_process_group("gloo")
    found = []
    for config in configs:
        result = luthier.train(config)
        dist.barrier()
        found.append(numbers(result))
    return found


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(config, whole, tmp_path: Path):
    halved = config | {"gradient_accumulation_steps": 1}
    configs = [halved | {"output_dir": str(tmp_path / "lora")}]
    full = {"finetuning_type": "full", "learning_rate": 0.05}
    configs.append(halved | full | {"output_dir": str(tmp_path / "full")})

    ranks = values_of_ranks(train_on_ranks, 2, configs)

    alone = numbers(luthier.train(config | full | {"output_dir": str(tmp_path / "alone")}))
    for lora, of_full in ranks:
        check(lora, whole)
        check(of_full, alone)


def train_here(config: dict[str, Any]) -> list[float]:
    return numbers(luthier.train(config))["log"]


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("deepspeed"), reason="the package deepspeed is not installed")
def test_weights_in_parts_learn_the_same_go_on_and_load_elsewhere(config, whole, tmp_path: Path):
    zero = {"deepspeed": {"zero_optimization": {"stage": 3}}, "gradient_accumulation_steps": 1}
    config = config | zero | {"save_strategy": "steps", "save_steps": 4}
    once, cut = tmp_path / "once", tmp_path / "cut"

    learned, _ = values_of_ranks(train_here, 2, config | {"output_dir": str(once)})
    shutil.copytree(once / "checkpoint-4", cut / "checkpoint-4")
    resumed, _ = values_of_ranks(train_here, 2, config | {"output_dir": str(cut)})

    assert learned == pytest.approx(whole["log"], rel=1e-5, abs=1e-5)
    assert resumed == learned
    assert lines(cut) == lines(once)
    for one, other in zip(lines(once), whole["scores"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    weights = load_file(once / "adapter_model.safetensors")
    for name, weight in load_file(cut / "adapter_model.safetensors").items():
        assert torch.equal(weight, weights[name]), name
    tokenizer = AutoTokenizer.from_pretrained(once)
    model = load("lora", once, tokenizer)
    rows = json.loads(Path(config["eval_dataset"]).read_text())
    for row, told in zip(rows, lines(once), strict=True):
        for side in ("chosen", "rejected"):
            asked = {"role": "user", "content": row["instruction"]}
            turns = [asked, {"role": "assistant", "content": row[side]}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            assert scores_of(model, encoded).item() == pytest.approx(told[side], abs=1e-5)
