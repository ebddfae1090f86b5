"""a model with more layers is the same model, and what is trained lies in the new ones"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import luthier
from luthier import cli
from luthier.errors import CheckpointError, ModelError
from luthier.exporting.expand import expand
from tests import tiny
from tests.generating.test_generator import make_gemma2
from tests.modeling.adapters.test_lora import load, logits
from tests.stages.made import short_run

MODELS = {
    "llama": lambda: tiny.make_llama(num_hidden_layers=4),
    "qwen2": lambda: tiny.make_qwen2(num_hidden_layers=4),
    "gemma2": make_gemma2,
    "qwen3_moe": lambda: tiny.make_qwen3_moe(num_hidden_layers=4),
}


@pytest.fixture(params=MODELS)
def model_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model: Any = MODELS[request.param]()
    folder = tiny.save(tmp_path / "model", model)
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder


def test_logits_are_equal_bit_for_bit(model_folder: Path, tmp_path: Path):
    old = AutoModelForCausalLM.from_pretrained(model_folder)

    cli.main(["model", "expand", str(model_folder), "--blocks", "2", "--output", f"{tmp_path}/new"])

    new = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert len(new.model.layers) == len(old.model.layers) + 2
    assert torch.equal(logits(new), logits(old))
    kinds = getattr(new.config, "layer_types", None)
    assert kinds is None or len(kinds) == len(new.model.layers)
    assert (tmp_path / "new" / "tokenizer.json").is_file()


def test_adapters_and_freeze_learn_in_the_new_layers_alone(tmp_path: Path):
    folder = expand(str(tiny.save(tmp_path / "model", tiny.make_llama())), 2, tmp_path / "new")
    common: dict[str, Any] = {"use_llama_pro": True, "freeze_trainable_layers": 2}
    for method in ("lora", "oft", "freeze"):
        model = load(folder, **common, finetuning_type=method, oft_block_size=8)
        learned = {name for name, each in model.named_parameters() if each.requires_grad}
        assert learned
        assert {name.partition("layers.")[2].partition(".")[0] for name in learned} == {"1", "3"}
    experts = tiny.save(tmp_path / "experts", tiny.make_qwen3_moe())
    grown = expand(str(experts), 2, tmp_path / "more")
    learned = {n for n, each in load(grown, **common).named_parameters() if each.requires_grad}
    assert {name.partition("layers.")[2].partition(".")[0] for name in learned} == {"1", "3"}


def test_only_the_new_layers_differ_after_training(tmp_path: Path):
    folder = expand(str(tiny.save(tmp_path / "model", tiny.make_llama())), 1, tmp_path / "new")
    rows = tmp_path / "rows.json"
    rows.write_text('[{"instruction": "who are you", "output": "a luthier"}]')
    config = short_run(folder, tmp_path, "sft", rows, learning_rate=1e-2)
    config |= {"finetuning_type": "freeze", "use_llama_pro": True, "freeze_trainable_layers": 1}
    config |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}

    luthier.train(config)

    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "run"))
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing
    assert all(name.startswith("model.layers.2.") for name in differing)


def test_what_cannot_be_expanded_is_a_sentence(tmp_path: Path, gpt2_folder: Path):
    folder = tiny.save(tmp_path / "model", tiny.make_llama())
    with pytest.raises(ModelError, match=r"--blocks 3: .* has 2 layers.*: 1, 2"):
        expand(str(folder), 3, tmp_path / "new")
    with pytest.raises(ModelError, match="have no o_proj"):
        expand(str(gpt2_folder), 1, tmp_path / "new")
    with pytest.raises(CheckpointError, match=r"--output: .* is not empty"):
        expand(str(folder), 1, folder)
    assert not (tmp_path / "new").exists()
    assert not [*tmp_path.glob(".stage*")]
    with pytest.raises(ModelError, match="3 layers cannot have been added to make 2"):
        load(folder, finetuning_type="freeze", use_llama_pro=True, freeze_trainable_layers=3)


def test_a_copy_that_would_change_what_passes_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tiny.save(tmp_path / "model", tiny.make_llama())
    monkeypatch.setattr("luthier.exporting.expand.LAST_MATRICES", ("o_proj",))

    with pytest.raises(ModelError, match=r"differs by .* in its logits"):
        expand(str(folder), 1, tmp_path / "new")

    assert not (tmp_path / "new").exists()
