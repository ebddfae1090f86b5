"""runs on two ranks that hold weights in parts: the numbers and the files of one process"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import luthier
from luthier.distributed.fsdp_config import FULL, SHARDED
from luthier.errors import ArgumentsError
from tests.distributed.fsdp_runs import Told, train, train_all
from tests.launched import values_of_ranks
from tests.tiny import make_llama, save

CLOSE = 1e-5
"""Of losses and weights: float32 sums in another order, carried on by Adam for twenty steps."""

FULL_TUNING = {"finetuning_type": "full", "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def start(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """27 rows, one of them far longer than a micro-batch, 8 to a step: the last of 4 takes 3."""
    lengths = [n % 9 + 1 for n in range(26)] + [90]
    rows = [{"instruction": f"Count to {n}.", "output": "1 " * n} for n in lengths]
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    file.write_text(json.dumps(rows))
    return {
        "model_name_or_path": str(llama_folder),
        "dataset": str(file),
        "template": "chatml",
        "do_train": True,
        "cutoff_len": 256,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "tokens_per_micro_batch": 64,
        "learning_rate": 5e-3,
        "max_steps": 20,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
    }


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tied"
    return save(folder, make_llama(tie_word_embeddings=True))


@pytest.fixture(scope="module")
def cases(start: dict[str, Any], tied_folder: Path) -> dict[str, dict[str, Any]]:
    """Runs that one process and two ranks with FSDP make alike."""
    in_parts = {"fsdp_config": {"state_dict_type": SHARDED}}
    saving = {"save_strategy": "steps", "save_steps": 10}
    short = {"max_steps": 4}
    tied = {"model_name_or_path": str(tied_folder)}
    again = {"fsdp_config": {"fsdp_activation_checkpointing": True}}
    judged = {
        "val_size": 7,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # so that the first one is the best
        "do_eval": True,
    }
    each = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
    return {
        "lora": start | saving | in_parts,
        "full": start | FULL_TUNING | saving | in_parts,
        "whole": start | FULL_TUNING | saving | {"fsdp": "full_shard auto_wrap"},
        "freeze": start
        | short
        | each
        | {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
        "tied": start | short | tied | FULL_TUNING | again | {"fsdp": "shard_grad_op"},
        "tied embeddings": start | short | tied | {"additional_target": "embed_tokens,lm_head"},
        "evaluated": start | short | judged,
        "judged": start | short | judged | FULL_TUNING | in_parts,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ones(cases: dict[str, dict[str, Any]], folder: Path) -> dict[str, Told]:
    """Each run in one process."""
    return {name: train(alone(config, folder / "one" / name)) for name, config in cases.items()}


@pytest.fixture(scope="module")
def twos(cases: dict[str, dict[str, Any]], folder: Path) -> dict[str, list[Told]]:
    """Each run on two ranks: what both have told."""
    configs = [in_two(config, folder / "two" / name) for name, config in cases.items()]
    told = values_of_ranks(train_all, 2, configs)
    return dict(zip(cases, map(list, zip(*told, strict=True)), strict=True))


def alone(config: dict[str, Any], output: Path) -> dict[str, Any]:
    plain = {name: value for name, value in config.items() if not name.startswith("fsdp")}
    if "fsdp_activation_checkpointing" in str(config):
        plain["gradient_checkpointing"] = True
    return plain | {"output_dir": str(output), "per_device_train_batch_size": 4}


def in_two(config: dict[str, Any], output: Path) -> dict[str, Any]:
    return {"fsdp": True} | config | {"output_dir": str(output)}


def weights(run: Path) -> dict[str, Tensor]:
    (file,) = run.glob("*model.safetensors")
    return load_file(file)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of the difference over the norm."""
    assert one.keys() == other.keys()
    difference = sum((one[name] - other[name]).double().square().sum() for name in one)
    size = sum(each.double().square().sum() for each in one.values())
    return float(torch.as_tensor(difference / size).sqrt())


NAMES = ("lora", "full", "whole", "freeze", "tied", "tied embeddings", "evaluated", "judged")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_learn_what_one_learns(
    name: str, ones: dict[str, Told], twos: dict[str, list[Told]], folder: Path
):
    one, two = ones[name], twos[name][0]

    assert two.losses == pytest.approx(one.losses, rel=CLOSE)
    assert two.norms == pytest.approx(one.norms, rel=10 * CLOSE)
    assert distance(weights(folder / "one" / name), weights(folder / "two" / name)) < CLOSE
    assert len(two.losses) in (4, 20)
    assert twos[name][1].losses == two.losses


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[:-2])  # an evaluation leaves the head whole until it learns
def test_every_weight_lies_in_parts(name: str, twos: dict[str, list[Told]]):
    for told in twos[name]:
        assert told.kind.startswith("FSDP")
        assert told.num_whole == 0


@pytest.mark.slow
def test_fused_layers_compute_inside_gathered_ones(
    ones: dict[str, Told], twos: dict[str, list[Told]]
):
    for told in (ones["lora"], *twos["lora"]):
        steps, layers = len(told.losses), 2
        assert told.calls["gated_mlp"] > steps * layers
        assert told.calls["rms_norm"] > steps * layers * 2
        assert told.calls["lora_linear"] > steps * layers * 2
        assert told.calls["linear_nll"] >= steps
    for told in (ones["full"], *twos["full"]):
        assert told.calls["gated_mlp"] > len(told.losses) * 2


@pytest.mark.slow
def test_gradients_are_exchanged_once_a_step_or_with_every_micro_batch(
    twos: dict[str, list[Told]],
):
    for told in twos["full"]:  # put off and allowed again for all micro-batches but the last
        assert told.calls["set_requires_gradient_sync"] >= 2 * 5
    for told in twos["freeze"]:
        assert told.calls["set_requires_gradient_sync"] == 0


@pytest.mark.slow
def test_evaluation_gives_the_numbers_of_one_process(
    ones: dict[str, Told], twos: dict[str, list[Told]]
):
    one, two = ones["evaluated"].metrics, twos["evaluated"][0].metrics

    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=CLOSE)


@pytest.mark.slow
def test_results_are_read_without_this_program(
    start: dict[str, Any], twos: dict[str, list[Told]], folder: Path
):
    full = AutoModelForCausalLM.from_pretrained(folder / "two" / "full")
    base = AutoModelForCausalLM.from_pretrained(start["model_name_or_path"])
    adapted = PeftModel.from_pretrained(base, folder / "two" / "lora")
    saved = weights(folder / "two" / "full")
    tokens = torch.tensor([[5, 6, 7]])

    assert full.config.architectures == ["LlamaForCausalLM"]
    assert all(torch.equal(each, saved[name]) for name, each in full.named_parameters())
    assert not torch.allclose(full(tokens).logits, adapted(tokens).logits)
    with adapted.disable_adapter():
        before = adapted(tokens).logits
    assert not torch.allclose(before, adapted(tokens).logits)


@pytest.mark.slow
def test_checkpoints_hold_weights_once_and_as_asked(twos: dict[str, list[Told]], folder: Path):
    def files(name: str) -> set[str]:
        checkpoint = folder / "two" / name / "checkpoint-10"
        return {path.relative_to(checkpoint).parts[0] for path in checkpoint.rglob("*")}

    assert {"model.safetensors", "optimizer.bin"} <= files("whole")
    assert "pytorch_model_fsdp_0" not in files("whole")
    assert {"pytorch_model_fsdp_0", "optimizer_0", "config.json"} <= files("full")
    assert "model.safetensors" not in files("full")
    assert {"adapter_model.safetensors", "optimizer_0"} <= files("lora")
    assert "pytorch_model_fsdp_0" not in files("lora")


@pytest.fixture(scope="module")
def resumed(
    cases: dict[str, dict[str, Any]], twos: dict[str, list[Told]], folder: Path
) -> dict[str, Told]:
    """Runs of two ranks from the checkpoints in their middle, and from one of one process."""
    configs = {}
    for name, source, more in (
        ("lora", "two/lora", {}),
        ("full", "two/full", {}),
        ("whole", "two/whole", {"fsdp_config": {"state_dict_type": SHARDED}}),
        ("from one", "one/whole", {"resume_allow_changes": True}),
    ):
        case = cases[source.partition("/")[2]] | more
        checkpoint = folder / source / "checkpoint-10"
        configs[name] = in_two(case, folder / "resumed" / name) | {
            "resume_from_checkpoint": str(checkpoint)
        }
    told = values_of_ranks(train_all, 2, list(configs.values()))
    return dict(zip(configs, told[0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "full", "whole"])
def test_two_ranks_go_on_bit_by_bit(
    name: str, resumed: dict[str, Told], twos: dict[str, list[Told]], folder: Path
):
    assert resumed[name].error == ""
    assert resumed[name].losses == twos[name][0].losses
    assert distance(weights(folder / "two" / name), weights(folder / "resumed" / name)) == 0


@pytest.mark.slow
def test_two_ranks_go_on_from_one_process(
    ones: dict[str, Told], resumed: dict[str, Told], folder: Path
):
    assert resumed["from one"].losses == pytest.approx(ones["whole"].losses, rel=CLOSE)
    one, two = weights(folder / "one" / "whole"), weights(folder / "resumed" / "from one")
    assert distance(one, two) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "full", "whole"])
def test_one_process_goes_on_from_two_ranks(
    name: str,
    cases: dict[str, dict[str, Any]],
    twos: dict[str, list[Told]],
    folder: Path,
):
    output = folder / "alone" / name
    checkpoint = folder / "two" / name / "checkpoint-10"
    config = {"resume_from_checkpoint": str(checkpoint), "resume_allow_changes": True}

    told = train(alone(cases[name], output) | config)

    assert told.error == ""
    assert told.losses == pytest.approx(twos[name][0].losses, rel=CLOSE)
    assert distance(weights(folder / "two" / name), weights(output)) < CLOSE


@pytest.mark.slow
def test_four_ranks_go_on_from_parts_of_two(
    cases: dict[str, dict[str, Any]], twos: dict[str, list[Told]], folder: Path
):
    checkpoint = folder / "two" / "full" / "checkpoint-10"
    output = folder / "four"
    config = in_two(cases["full"], output) | {
        "per_device_train_batch_size": 1,
        "resume_from_checkpoint": str(checkpoint),
        "resume_allow_changes": True,
    }

    told = values_of_ranks(train, 4, config)

    assert told[3].losses == pytest.approx(twos["full"][0].losses, rel=CLOSE)
    assert distance(weights(folder / "two" / "full"), weights(output)) < CLOSE


def test_a_run_that_no_launcher_started_is_refused(start: dict[str, Any], tmp_path: Path):
    told = train(in_two(start, tmp_path))

    assert "luthier train --nproc N" in told.error


def test_layers_that_the_model_has_not_are_refused(start: dict[str, Any], tmp_path: Path):
    config = in_two(start, tmp_path) | {"fsdp_transformer_layer_cls_to_wrap": "GPT2Block"}

    for told in values_of_ranks(train, 2, config):
        assert "no layer of class GPT2Block; it names LlamaDecoderLayer" in told.error


def test_what_contradicts_itself_is_refused_before_anything_loads(
    start: dict[str, Any], tmp_path: Path
):
    config = in_two(start, tmp_path) | {"model_name_or_path": "absent", "fsdp": "hybrid_shard"}

    with pytest.raises(ArgumentsError) as caught:
        luthier.train(config)

    assert "write full_shard" in str(caught.value)
    assert "absent" in str(caught.value)
    assert FULL not in str(caught.value)
