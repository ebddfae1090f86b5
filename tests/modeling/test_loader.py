"""a folder becomes a model; what cannot be read is named"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.errors import MissingPackage, ModelError
from luthier.modeling.loader import load_config
from tests import tiny
from tests.modeling.adapters.test_lora import learning, load, logits
from tests.modeling.making import make_arguments


@pytest.mark.parametrize("is_trainable", [True, False])
def test_the_weights_are_those_of_the_folder(llama_folder: Path, is_trainable: bool):
    expected = logits(AutoModelForCausalLM.from_pretrained(llama_folder))

    model = load(llama_folder, finetuning_type="full", is_trainable=is_trainable)

    assert model.training == is_trainable
    assert bool(learning(model)) == is_trainable
    torch.testing.assert_close(logits(model), expected)


def test_from_scratch_the_weights_are_new(llama_folder: Path):
    model = load(llama_folder, finetuning_type="full", train_from_scratch=True)

    assert not torch.equal(logits(model), logits(load(llama_folder, is_trainable=False)))
    assert model.config.hidden_size == 32


@pytest.mark.parametrize(("asked", "expected"), [("disabled", "eager"), ("sdpa", "sdpa")])
def test_the_attention_kernel_is_the_one_asked_for(llama_folder: Path, asked: str, expected: str):
    assert load(llama_folder, flash_attn=asked).config._attn_implementation == expected


@pytest.mark.parametrize("asked", ["fa2", "fa3"])
def test_an_absent_attention_package_is_an_error(llama_folder: Path, asked: str):
    arguments = make_arguments(model_name_or_path=str(llama_folder), flash_attn=asked)

    with pytest.raises((MissingPackage, ModelError), match=asked):
        load_config(arguments.model)


def test_sampling_settings_without_sampling_do_not_stop_the_saving(tmp_path: Path):
    folder = tiny.save(tmp_path / "model", tiny.make_llama())
    settings = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))

    model = load(folder, finetuning_type="full")
    model.save_pretrained(tmp_path / "again")

    assert model.generation_config.do_sample is True


def test_a_damaged_file_is_named(tmp_path: Path):
    folder = tiny.save(tmp_path / "model", tiny.make_llama())
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")

    with pytest.raises(ModelError, match=str(folder)):
        load(folder)


def test_absent_weights_do_not_start_at_random(tmp_path: Path):
    folder = tiny.save(tmp_path / "model", tiny.make_llama())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))

    with pytest.raises(ModelError, match=r"lacks 9 of the weights .*layers\.2"):
        load(folder)


def test_a_models_own_code_does_not_run(tmp_path: Path):
    folder = tiny.save(tmp_path / "model", tiny.make_llama())
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass OwnConfig: ...")
    arguments = make_arguments(model_name_or_path=str(folder))

    with pytest.raises(ModelError, match="set trust_remote_code: true"):
        load_config(arguments.model)

    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_opened(tmp_path: Path):
    folder = tiny.save(tmp_path / "model", tiny.make_llama())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(ModelError, match="Only safetensors"):
        load(folder)


def test_training_nothing_is_an_error(llama_folder: Path):
    with pytest.raises(ModelError, match="no parameter learns"):
        load(llama_folder, finetuning_type="freeze", freeze_trainable_layers=0)


def test_norms_and_head_are_float32_on_request(tmp_path: Path):
    folder = tiny.save(tmp_path / "model", tiny.make_llama().to(torch.bfloat16))

    model = load(folder, bf16=True, upcast_layernorm=True)
    head = load(folder, pure_bf16=True, upcast_lmhead_output=True)

    kinds = {n: p.dtype for n, p in model.named_parameters() if "norm" in n}
    assert set(kinds.values()) == {torch.float32}
    assert logits(head).dtype == torch.float32


@pytest.mark.parametrize("trained", [{"additional_target": "wte"}, {"lora_target": "c_attn,wte"}])
def test_layer_norms_take_what_trained_embeddings_give(gpt2_folder: Path, trained):
    model = load(gpt2_folder, bf16=True, **{"lora_target": "c_attn"} | trained)

    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=torch.arange(5)[None], labels=torch.arange(5)[None]).loss
    loss.backward()

    assert loss.isfinite()
    assert model.get_base_model().transformer.h[0].attn.c_attn.weight.dtype == torch.bfloat16


def test_a_longer_cutoff_stretches_the_model_that_is_saved(llama_folder: Path, tmp_path: Path):
    model = load(llama_folder, finetuning_type="full", rope_scaling="yarn", cutoff_len=1024)
    model.save_pretrained(tmp_path)

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["max_position_embeddings"] == 1024


def test_the_counts_are_said(llama_folder: Path, capsys: pytest.CaptureFixture[str]):
    load(llama_folder)

    assert "trainable params: " in capsys.readouterr().err


def test_a_key_value_cache_can_be_refused(llama_folder: Path):
    model = load(llama_folder, is_trainable=False, use_kv_cache=False)

    assert model.config.use_cache is False
