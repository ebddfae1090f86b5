"""a trained PiSSA adapter equals its conversion on the untouched base model"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from luthier.errors import ModelError
from luthier.modeling.adapters.pissa import convert_pissa, save_pissa_start
from tests.modeling.adapters.test_lora import load, logits, shake


@pytest.mark.parametrize("iterations", [-1, 8])
def test_the_converted_adapter_is_a_plain_lora_of_the_same_model(
    llama_folder: Path, tmp_path: Path, iterations: int
):
    model = load(llama_folder, pissa_init=True, pissa_iter=iterations, lora_rank=4)
    save_pissa_start(model, tmp_path)
    shake(model)
    expected = logits(model)

    folder = convert_pissa(model, tmp_path)

    config = PeftConfig.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(llama_folder)
    assert config.r == 8
    assert config.init_lora_weights is True
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(plain, folder)), expected, atol=1e-4, rtol=1e-3
    )
    torch.testing.assert_close(logits(model), expected)


def test_without_the_start_there_is_no_conversion(llama_folder: Path, tmp_path: Path):
    model = load(llama_folder, pissa_init=True, pissa_iter=-1)

    with pytest.raises(ModelError, match="pissa_initial"):
        convert_pissa(model, tmp_path)
