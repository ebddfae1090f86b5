"""what PiSSA takes from the weights is taken once, and a file needs nothing of it"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from luthier.checkpoints.pretrained import PretrainedFiles
from luthier.errors import CheckpointError
from luthier.modeling.loader import load_model
from luthier.modeling.tokenizer import load_tokenizer
from tests.modeling.adapters.test_lora import load, logits, shake
from tests.modeling.making import make_arguments


def write(model: Any, folder: Path, model_folder: Path) -> Path:
    tokenizer = load_tokenizer(make_arguments(model_name_or_path=str(model_folder)).model)
    PretrainedFiles().write(model, tokenizer, folder)
    return folder


@pytest.mark.parametrize("iterations", [-1, 8])
def test_a_file_is_a_plain_lora_of_twice_the_rank(
    llama_folder: Path, tmp_path: Path, iterations: int
):
    model = load(llama_folder, pissa_init=True, pissa_iter=iterations, lora_rank=4)
    shake(model)

    config = PeftConfig.from_pretrained(write(model, tmp_path, llama_folder))

    assert (config.r, config.lora_alpha, config.init_lora_weights) == (8, 16, True)
    assert model.peft_config["default"].r == 4  # whoever saves goes on


def test_the_start_is_the_largest_part_of_the_weights(llama_folder: Path):
    weight = AutoModelForCausalLM.from_pretrained(llama_folder).model.layers[0].mlp.up_proj.weight
    left, values, right = torch.linalg.svd(weight)
    largest = left[:, :4] @ values[:4].diag() @ right[:4]

    model = load(llama_folder, pissa_init=True, pissa_iter=-1, lora_rank=4)

    layer = model.base_model.model.model.layers[0].mlp.up_proj
    torch.testing.assert_close(layer.get_delta_weight("default"), largest, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.base_layer.weight, weight - largest, atol=1e-5, rtol=1e-4)


def test_the_start_is_drawn_by_the_seed_of_the_run_and_leaves_other_numbers_alone(
    llama_folder: Path,
):
    torch.manual_seed(1)
    first = load(llama_folder, pissa_init=True, pissa_iter=1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    load(llama_folder)
    assert torch.equal(torch.rand(1), drawn)

    again = load(llama_folder, pissa_init=True, pissa_iter=1)

    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_weight_with_fewer_singular_values_than_the_rank_starts_as_far_as_it_has_them(
    llama_folder: Path, tmp_path: Path
):
    before = logits(AutoModelForCausalLM.from_pretrained(llama_folder))

    model = load(llama_folder, pissa_init=True, lora_rank=20)  # keys and values have 16

    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-4)
    assert (
        not model.base_model.model.model.layers[0]
        .self_attn.k_proj.lora_B.default.weight[:, 16:]
        .any()
    )


def test_a_checkpoint_without_its_start_cannot_go_on(llama_folder: Path, tmp_path: Path):
    write(load(llama_folder, lora_rank=4), tmp_path, llama_folder)
    arguments = make_arguments(model_name_or_path=str(llama_folder), pissa_init=True, lora_rank=4)

    with pytest.raises(CheckpointError, match="does not hold what its PiSSA adapter began with"):
        load_model(
            arguments, load_tokenizer(arguments.model), is_trainable=True, checkpoint=tmp_path
        )


@pytest.mark.parametrize(
    ("kind", "said"), [("pissa", "up to rounding"), ("pissa_niter_1", "draws at random")]
)
def test_an_adapter_from_elsewhere_is_told_and_written_as_the_model_that_it_gave(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, said: str
):
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=kind)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(llama_folder), config)
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load(llama_folder, adapter_name_or_path=str(tmp_path / "theirs"), pissa_init=True)
    shown = " ".join(capsys.readouterr().err.split())
    assert said in shown
    assert "pissa_init has no effect" in shown
    if kind == "pissa":
        torch.testing.assert_close(logits(model), logits(theirs), atol=1e-5, rtol=1e-4)

    shake(model)
    written = write(model, tmp_path / "ours", llama_folder)

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), written)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-4)
