"""tiny random models of many architectures, with windows, caps and sinks where they have them"""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedModel

COMMON = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = COMMON | {"head_dim": 8}
WINDOW = {"sliding_window": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

EQUAL: dict[str, tuple[str, dict[str, object]]] = {
    "qwen2": ("Qwen2Config", COMMON),
    "qwen2, window": (
        "Qwen2Config",
        COMMON | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", HEADS),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "llama": ("LlamaConfig", COMMON),
    "mistral": ("MistralConfig", COMMON | WINDOW),
    "cohere2": ("Cohere2Config", COMMON | WINDOW),
    "gemma2": (
        "Gemma2Config",
        HEADS
        | WINDOW
        | {
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0,
            # transformers < 5.21 takes sdpa by itself, which leaves the cap out
            "attn_implementation": "eager",
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        HEADS | WINDOW | {"query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    ),
    "phi": ("PhiConfig", COMMON),
    "phi3": ("Phi3Config", COMMON),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": 120,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        {name: value for name, value in COMMON.items() if name != "num_key_value_heads"},
    ),
    "olmo2": ("Olmo2Config", COMMON),
    "smollm3": ("SmolLM3Config", COMMON),
    "mixtral": ("MixtralConfig", COMMON | EXPERTS),
    "granite": ("GraniteConfig", COMMON),
    "glm4": ("Glm4Config", HEADS),
    "deepseek_v3": (
        "DeepseekV3Config",
        COMMON
        | {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "first_k_dense_replace": 1,
        },
    ),
    "starcoder2": ("Starcoder2Config", COMMON),
    "ernie4_5": ("Ernie4_5Config", COMMON),
    "gpt_oss": ("GptOssConfig", HEADS | WINDOW | EXPERTS),
}
"""Architectures that attend by a tree as they do by each sequence."""

CARRYING: dict[str, tuple[str, dict[str, object]]] = {
    "falcon_h1": (
        "FalconH1Config",
        HEADS
        | {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        HEADS
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
}
"""Architectures with a state that runs along the tokens, from one sequence into the next."""

OTHERS: dict[str, tuple[str, dict[str, object]]] = {
    "stablelm": ("StableLmConfig", COMMON),
    "falcon": (
        "FalconConfig",
        {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "qwen2_moe, window": (
        "Qwen2MoeConfig",
        COMMON
        | WINDOW
        | {
            "use_sliding_window": True,
            "max_window_layers": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
}
"""Architectures that cannot be made to attend by a tree."""


def make(name: str) -> PreTrainedModel:
    """A float32 model in evaluation mode, with the attention that transformers chooses."""
    kind, settings = (EQUAL | CARRYING | OTHERS)[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()
