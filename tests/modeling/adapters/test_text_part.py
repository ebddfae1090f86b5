"""a model that also sees learns text: its language model, and nothing else of it"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.arguments.choices import ADAPTERS
from luthier.errors import ModelError
from luthier.modeling.adapters.targets import choose_targets, text_part
from tests import tiny
from tests.modeling.making import make_arguments


def make_seeing() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": rope,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4}
    torch.manual_seed(0)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return Qwen2VLForConditionalGeneration(config)


def learning(finetuning_type: str, **values: object) -> set[str]:
    arguments = make_arguments(finetuning_type=finetuning_type, **values)
    model = ADAPTERS.get(finetuning_type).prepare(make_seeing(), arguments, is_trainable=True)
    return {name for name, each in model.named_parameters() if each.requires_grad}


@pytest.mark.parametrize(
    "values",
    [
        {"finetuning_type": "lora"},
        {"finetuning_type": "lora", "lora_target": ("q_proj",)},
        {"finetuning_type": "freeze"},
        {"finetuning_type": "full"},
    ],
)
def test_only_what_reads_text_learns(values):
    names = learning(**values)

    assert any("language_model" in name for name in names)
    assert not [name for name in names if "visual" in name]
    assert any("lm_head" in name for name in names) == (values["finetuning_type"] == "full")


def test_a_layer_of_its_eyes_is_no_choice():
    with pytest.raises(ModelError, match="no module 'qkv'"):
        choose_targets(make_seeing(), ("qkv",))


def test_a_model_of_text_is_text_as_a_whole():
    assert text_part(tiny.make_llama()) is None
