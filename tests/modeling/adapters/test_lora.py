"""adapters are made, trained on, merged; plain peft reads what is saved"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from luthier.errors import ModelError
from luthier.modeling.adapters import low_rank
from luthier.modeling.loader import load_model
from luthier.modeling.tokenizer import load_tokenizer
from tests import tiny
from tests.modeling.making import make_arguments

IDS = torch.tensor([[5, 17, 300, 9, 4]])


def load(folder: Path, *, is_trainable: bool = True, **values: object) -> Any:
    arguments = make_arguments(model_name_or_path=str(folder), **values)
    tokenizer = load_tokenizer(arguments.model)
    return load_model(arguments, tokenizer, is_trainable=is_trainable)


def learning(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def shake(model: Any, seed: int = 1) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def saved(folder: Path, model_folder: Path, *, seed: int = 1, **values: object) -> Path:
    model = load(model_folder, **values)
    shake(model, seed)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(llama_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama_folder)


@pytest.mark.parametrize("folder", ["llama_folder", "gpt2_folder"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"use_rslora": True, "lora_rank": 4},
        {"use_dora": True},
        {"lora_alpha": 3, "lora_dropout": 0.1},
        {"pissa_init": True, "pissa_iter": -1},
        {"pissa_init": True, "pissa_iter": 4},
    ],
)
def test_a_new_adapter_changes_nothing_and_learns(
    request: pytest.FixtureRequest, folder: str, values: dict[str, object], tmp_path: Path
):
    path = request.getfixturevalue(folder)
    before = logits(AutoModelForCausalLM.from_pretrained(path))

    model = load(path, **values)

    # PiSSA takes the weights apart in float32; its error is that of one sum
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-4)
    assert all("lora_" in name for name in learning(model))
    model.train()
    model(IDS, labels=IDS).loss.backward()
    assert all(
        (parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters()
    )


@pytest.mark.parametrize("values", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_plain_peft_reads_what_was_saved(
    llama_folder: Path, tmp_path: Path, values: dict[str, object]
):
    model = load(llama_folder, lora_rank=4, **values)
    shake(model)
    model.save_pretrained(tmp_path)

    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), tmp_path)

    torch.testing.assert_close(logits(again), logits(model))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}


def test_alpha_is_twice_the_rank_unless_given(llama_folder: Path):
    assert load(llama_folder, lora_rank=3).peft_config["default"].lora_alpha == 6
    assert load(llama_folder, lora_rank=3, lora_alpha=5).peft_config["default"].lora_alpha == 5


def test_additional_targets_are_trained_whole(llama_folder: Path):
    model = load(llama_folder, lora_target="q_proj", additional_target="lm_head,norm")

    names = learning(model)
    assert any(name.endswith("lm_head.modules_to_save.default.weight") for name in names)
    assert any(name.endswith("norm.modules_to_save.default.weight") for name in names)
    assert sum("lora_A" in name for name in names) == 2


def test_the_last_adapter_is_trained_on(llama_folder: Path, tmp_path: Path, base: Any):
    first = saved(tmp_path / "first", llama_folder)
    second = saved(tmp_path / "second", llama_folder, adapter_name_or_path=str(first), lora_rank=99)

    model = load(llama_folder, adapter_name_or_path=f"{first},{second}")

    assert PeftConfig.from_pretrained(second).r == 8
    assert all("lora_" in name for name in learning(model))
    merged = PeftModel.from_pretrained(base, first).merge_and_unload()
    expected = logits(PeftModel.from_pretrained(merged, second))
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_a_new_adapter_starts_on_the_merged_ones(llama_folder: Path, tmp_path: Path):
    first = saved(tmp_path / "first", llama_folder)
    expected = logits(load(llama_folder, adapter_name_or_path=str(first)))

    model = load(
        llama_folder, adapter_name_or_path=str(first), create_new_adapter=True, lora_rank=2
    )

    assert model.peft_config["default"].r == 2
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_for_answers_everything_is_merged(llama_folder: Path, tmp_path: Path):
    first = saved(tmp_path / "first", llama_folder)
    expected = logits(load(llama_folder, adapter_name_or_path=str(first)))

    model = load(llama_folder, adapter_name_or_path=str(first), is_trainable=False)

    assert not isinstance(model, PeftModel)
    assert not learning(model)
    assert not model.training
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_may_stand_in_a_folder_inside(llama_folder: Path, tmp_path: Path):
    saved(tmp_path / "run" / "inner", llama_folder)

    load(llama_folder, adapter_name_or_path=str(tmp_path / "run"), adapter_folder="inner")


def test_an_adapter_of_another_model_is_refused(
    llama_folder: Path, gpt2_folder: Path, tmp_path: Path
):
    first = saved(tmp_path / "first", llama_folder)

    with pytest.raises(ModelError, match="does not fit the model"):
        load(gpt2_folder, adapter_name_or_path=str(first))


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_make_embeddings_learn_and_are_saved(tmp_path: Path, tied: bool):
    folder = tiny.save(tmp_path / "model", tiny.make_llama(tie_word_embeddings=tied))
    model = load(folder, add_special_tokens="<a>,<b>", resize_vocab=True)
    shake(model)

    names = {name for name in learning(model) if "lora_" not in name}
    model.save_pretrained(tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    plain.resize_token_embeddings(model.config.vocab_size)
    again = PeftModel.from_pretrained(plain, tmp_path / "adapter")

    assert all("modules_to_save" in name for name in names)
    assert len(names) == (1 if tied else 2)
    torch.testing.assert_close(logits(again), logits(model))


def test_a_tied_head_follows_embeddings_that_learn_also_under_gpt2s_names(tmp_path: Path):
    folder = tiny.save(tmp_path / "model", tiny.make_gpt2())
    model = load(folder, add_special_tokens="<a>", resize_vocab=True)
    shake(model)

    model.save_pretrained(tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    plain.resize_token_embeddings(model.config.vocab_size)
    again = PeftModel.from_pretrained(plain, tmp_path / "adapter")

    learned = model.get_input_embeddings().modules_to_save["default"].weight
    assert model.get_output_embeddings().modules_to_save["default"].weight is learned
    assert sum("modules_to_save" in name for name in learning(model)) == 1
    torch.testing.assert_close(logits(again), logits(model))


def test_our_own_loading_grows_before_it_reads_the_adapter(tmp_path: Path):
    folder = tiny.save(tmp_path / "model", tiny.make_llama())
    first = saved(tmp_path / "adapter", folder, add_special_tokens="<a>")
    model = load(folder, add_special_tokens="<a>", adapter_name_or_path=str(first))

    answering = load(
        folder, add_special_tokens="<a>", adapter_name_or_path=str(first), is_trainable=False
    )

    torch.testing.assert_close(logits(answering), logits(model), atol=1e-5, rtol=1e-4)


def test_an_adapter_without_embeddings_does_not_go_on_with_new_tokens(
    llama_folder: Path, tmp_path: Path
):
    first = saved(tmp_path / "first", llama_folder, lora_target="q_proj")
    values = {"add_special_tokens": "<a>", "adapter_name_or_path": str(first)}

    with pytest.raises(ModelError, match="does not hold the embeddings"):
        load(llama_folder, **values)

    model = load(llama_folder, create_new_adapter=True, **values)
    assert model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_embeddings_and_head_of_a_tied_model_learn_one_pair_of_matrices(
    tmp_path: Path, target: str, half: torch.dtype | None
):
    model = tiny.make_llama(tie_word_embeddings=True)
    folder = tiny.save(tmp_path / "model", model if half is None else model.to(half))

    model = load(folder, lora_target=target, bf16=half is not None)
    shake(model)

    assert len(learning(model)) == 2
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    delta = embeddings.get_delta_weight("default").float()
    torch.testing.assert_close(head.get_delta_weight("default").float(), delta)
    ids = torch.tensor([[5, 17, 300]])
    with torch.autocast("cpu", torch.bfloat16, enabled=half is not None):
        model(ids, labels=ids).loss.backward()
    rows = embeddings.lora_embedding_A["default"].grad.abs().sum(dim=0)
    assert (rows > 0).all()  # of the head; the embeddings alone would learn three rows


def test_what_lies_on_a_tied_matrix_is_never_merged(tmp_path: Path):
    folder = tiny.save(tmp_path / "model", tiny.make_llama(tie_word_embeddings=True))
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens", "v_proj"])
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)

    answering = load(folder, adapter_name_or_path=str(tmp_path / "theirs"), is_trainable=False)

    torch.testing.assert_close(logits(answering), logits(theirs))
    with pytest.raises(ModelError, match="cannot be merged into the one matrix"):
        load(folder, adapter_name_or_path=str(tmp_path / "theirs"), create_new_adapter=True)


def test_nothing_left_to_adapt_is_told(llama_folder: Path):
    with pytest.raises(ModelError, match="nothing is left that LoRA adapts: q_proj are trained"):
        load(llama_folder, lora_target="q_proj", additional_target="q_proj")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "it is PROMPT_TUNING"),
        ({"r": "8"}, "does not fit the model"),
        ({"peft_type": "NONE"}, "does not fit the model"),
    ],
)
def test_an_odd_adapter_is_a_sentence(
    llama_folder: Path, tmp_path: Path, change: dict[str, object], said: str
):
    config = saved(tmp_path / "adapter", llama_folder) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))

    with pytest.raises(ModelError, match=said):
        load(llama_folder, adapter_name_or_path=str(tmp_path / "adapter"))


def test_a_cut_adapter_is_a_sentence(llama_folder: Path, tmp_path: Path):
    file = saved(tmp_path, llama_folder) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])

    with pytest.raises(ModelError, match="does not fit the model"):
        load(llama_folder, adapter_name_or_path=str(tmp_path))


def test_experts_are_left_out_where_deepspeed_fetches_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tiny.save(tmp_path, tiny.make_qwen3_moe())
    assert any("experts" in name for name in learning(load(folder)))
    monkeypatch.setattr(low_rank, "is_deepspeed_zero3_enabled", lambda: True)

    names = learning(load(folder))

    assert not any("experts" in name for name in names)
    assert "cannot be adapted with DeepSpeed ZeRO stage 3" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("asked", "idle"),
    [
        ({}, ""),
        ({"lora_rank": 4, "lora_target": ("v_proj", "q_proj"), "lora_alpha": 8}, ""),
        ({"lora_rank": 16, "lora_target": ("all",)}, "lora_rank, lora_target have no effect"),
        ({"lora_dropout": 0.5, "lora_rank": 4}, "lora_dropout has no effect"),
        ({"use_dora": True, "additional_target": ("norm",)}, "additional_target, use_dora have"),
    ],
)
def test_settings_that_an_adapter_does_not_take_on_are_told_in_one_line(
    llama_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    asked: dict[str, object],
    idle: str,
):
    adapter = saved(tmp_path, llama_folder, lora_rank=4, lora_target=("q_proj", "v_proj"))
    capsys.readouterr()

    load(llama_folder, adapter_name_or_path=str(adapter), **asked)

    told = [line for line in capsys.readouterr().err.splitlines() if "goes on as it is" in line]
    assert len(told) == bool(idle)
    assert not idle or f"(rank 4, alpha 8): {idle}" in told[0]
