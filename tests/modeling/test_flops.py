"""operations are those that torch counts, where it counts them, without hidden pairs"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from luthier.modeling.counts import WHOLE, StepFlops, count_flops
from tests import tiny

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def frozen_but_last(model: Any) -> Any:
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    return model


def with_trained_head(model: Any) -> Any:
    config = peft.LoraConfig(
        r=4, target_modules="all-linear", modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny.make_llama(),
    "tied": lambda: tiny.make_llama(tie_word_embeddings=True),
    "gpt2": lambda: tiny.make_gpt2(),
    "freeze": lambda: frozen_but_last(tiny.make_llama(num_hidden_layers=4)),
    "lora": lambda: with_trained_head(tiny.make_qwen2(num_hidden_layers=8)),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    ),
    "deepseek": lambda: transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            **SMALL,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=32,
            first_k_dense_replace=1,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=16,
        )
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**SMALL, head_dim=16, sliding_window=8)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_matrices_and_attention_cost_what_torch_counts(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    base.set_attn_implementation("eager")
    base.set_experts_implementation("eager")
    length = 20
    ids = torch.randint(3, 90, (1, length))

    cost = count_flops(model)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    assert cost is not None
    every_pair = sum(cost.of_pair.values()) * length**2  # the plain kernel computes hidden ones
    counted = length * (cost.of_token + cost.of_read) + every_pair
    # below the first adapter the inputs of a layer's later adapters need no gradient either
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02 if name == "lora" else 0)


def test_windows_and_branches_count_only_the_pairs_that_see_each_other():
    cost = StepFlops(of_token=10, of_read=100, of_pair={WHOLE: 1, 2: 1000})

    assert cost.of(torch.tensor([0, 1, 2, 0, 1]), 3) == 50 + 300 + 9 + 8 * 1000


def test_gemma_alternates_windows():
    model = MODELS["gemma3"]()
    model.config.layer_types = ["sliding_attention", "full_attention"] * 2

    cost = count_flops(model)

    assert cost is not None
    assert cost.of_pair.keys() == {8, WHOLE}


def test_unknown_layers_are_not_guessed():
    model = tiny.make_llama()
    model.config.layer_types = ["heavily_compressed_attention"] * 2

    assert count_flops(model) is None
