"""in the run, taken up by another run, merged for answers, in plain peft: one model"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from luthier.checkpoints.pretrained import PretrainedFiles
from luthier.distributed.fsdp_state import load_weights
from luthier.modeling.loader import load_model
from luthier.modeling.tokenizer import load_tokenizer
from tests import tiny
from tests.modeling.adapters.test_lora import logits, shake
from tests.modeling.making import make_arguments

PADDED = 448
"""Rows for more tokens than the tokenizer has."""

LORA: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"pissa_init": True, "use_rslora": True},
}

METHODS = LORA | {"oft": {"finetuning_type": "oft", "oft_block_size": 8}}

NEW = {"add_special_tokens": "<a>", "resize_vocab": True}

SITUATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "new tokens": NEW,
    "new tokens in the padding": {**NEW, "additional_target": "norm"},
    "lora on embeddings": {"lora_target": "q_proj,embed_tokens"},
    "lora on the head": {"lora_target": "q_proj,lm_head"},
    "head whole": {"lora_target": "q_proj,embed_tokens", "additional_target": "lm_head"},
}

GPT2 = {"q_proj": "c_attn", "embed_tokens": "wte", "norm": "ln_f"}

CASES = [
    *[("tied", method, situation) for method in LORA for situation in SITUATIONS],
    *[(kind, "pissa", situation) for kind in ("untied", "gpt2") for situation in SITUATIONS],
    *[("moe", "lora", "plain")],
    *[("untied", "oft", situation) for situation in ("plain", "new tokens in the padding")],
    *[("tied", "oft", "plain")],
]


def make_base(folder: Path, kind: str, num_rows: int) -> Path:
    if kind == "gpt2":
        return tiny.save(folder, tiny.make_gpt2(num_rows))
    if kind == "moe":
        return tiny.save(folder, tiny.make_qwen3_moe(num_rows))
    return tiny.save(folder, tiny.make_llama(num_rows, tie_word_embeddings=kind == "tied"))


@pytest.mark.parametrize(("kind", "method", "situation"), CASES)
def test_logits_are_equal(tmp_path: Path, kind: str, method: str, situation: str):
    num_rows = PADDED if "padding" in situation else 400
    folder = make_base(tmp_path / "model", kind, num_rows)
    values = {"lora_rank": 4, **METHODS[method], **SITUATIONS[situation]}
    if kind == "gpt2":
        for ours, theirs in GPT2.items():
            values = {
                name: value.replace(ours, theirs) if isinstance(value, str) else value
                for name, value in values.items()
            }
    tokens = {name: values[name] for name in NEW if name in values}

    def load(seed: int = 1, *, is_trainable: bool = True, **options: Any) -> Any:
        torch.manual_seed(seed)  # nothing that is drawn in the run is drawn again
        checkpoint = options.pop("checkpoint", None)
        arguments = make_arguments(model_name_or_path=str(folder), seed=seed, **options)
        tokenizer = load_tokenizer(arguments.model)
        return load_model(
            arguments, tokenizer, is_trainable=is_trainable, checkpoint=checkpoint
        ), tokenizer

    model, tokenizer = load(**values)
    shake(model)
    expected, written = logits(model), tmp_path / "adapter"
    PretrainedFiles().write(model, tokenizer, written)

    resumed, _ = load(seed=2, checkpoint=written, **values)
    load_weights(resumed, written)
    further, _ = load(seed=3, adapter_name_or_path=str(written), **tokens)
    answering, _ = load(seed=4, is_trainable=False, adapter_name_or_path=str(written), **tokens)
    base = AutoModelForCausalLM.from_pretrained(folder)
    if base.config.vocab_size != model.config.vocab_size:
        base.resize_token_embeddings(model.config.vocab_size)
    plain = PeftModel.from_pretrained(base, written)

    # a LoRA in one sum or in two, a rotation of weights or of what they are applied to; float32
    for other in (resumed, further, answering, plain):
        torch.testing.assert_close(logits(other), expected, atol=1e-5, rtol=1e-4)
    with safe_open(written / "adapter_model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    wide = [
        name
        for name, shape in shapes.items()
        if "lora_" not in name and "oft_" not in name and max(shape) >= 400
    ]
    num_ends = 1 if kind == "untied" else 2  # a head that is tied is named, too
    assert len(wide) == (2 if tokens else num_ends if "whole" in situation else 0)
