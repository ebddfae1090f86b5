"""a stretched context keeps what the configuration says, in whole numbers"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from luthier.errors import ModelError
from luthier.modeling.loader import stretch_rope
from tests import tiny

METHODS = ("linear", "dynamic", "yarn", "llama3")


def make_config() -> LlamaConfig:
    config = tiny.make_llama().config
    config.rope_parameters = {"rope_type": "default", "rope_theta": 77_000.0}
    return config


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("length", "factor"), [(None, 2), (513, 2), (1024, 2), (1500, 3)])
def test_the_maximum_grows_by_a_whole_factor(method: str, length: int | None, factor: int):
    config = make_config()

    stretch_rope(config, method, length)

    assert config.max_position_embeddings == 512 * factor
    assert type(config.max_position_embeddings) is int
    assert config.rope_parameters["rope_type"] == method
    assert config.rope_parameters["factor"] == factor
    assert config.rope_parameters["rope_theta"] == 77_000.0


@pytest.mark.parametrize("method", METHODS)
def test_the_stretched_model_runs_and_is_read_back(method: str, tmp_path: Path):
    config = make_config()
    stretch_rope(config, method, 1000)
    model = LlamaForCausalLM(config).eval()

    logits = model(torch.arange(600)[None] % 400).logits
    model.save_pretrained(tmp_path)

    assert torch.isfinite(logits).all()
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


def test_a_second_stretch_starts_from_the_original_maximum():
    config = make_config()

    stretch_rope(config, "yarn", 1024)
    stretch_rope(config, "yarn", 2000)

    assert config.max_position_embeddings == 2048


@pytest.mark.parametrize("length", [1, 512])
def test_nothing_changes_within_the_models_own_length(length: int):
    config = make_config()
    before = config.to_dict()

    stretch_rope(config, "linear", length)

    assert config.to_dict() == before


def test_a_model_without_rotary_positions_is_refused():
    with pytest.raises(ModelError, match="gpt2"):
        stretch_rope(tiny.make_gpt2().config, "linear", 2000)
