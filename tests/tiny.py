"""small real models and tokenizers that tests make for themselves"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from luthier.stages.stage import STAGES, Stage

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CORPUS = (
    "The luthier carves the neck of a violin from maple and the belly from spruce.",
    "system user assistant You are a helpful assistant. Who are you? What is your name?",
    "A string under tension sings when the bow draws it: 0 1 2 3 4 5 6 7 8 9 10 11 12.",
    "Tell me how glue is made. First warm the hide glue gently, then brush it on the joint.",
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(
    vocab_size: int = 400, chat_template: str | None = CHATML
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML's special tokens; any text encodes and decodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=chat_template,
        model_max_length=512,
    )


def make_sentencepiece(prepend: str = "first") -> PreTrainedTokenizerFast:
    """BPE over texts whose spaces are letters, with one set before a text.

    Args:
        prepend: before the "first" stretch, "always" (also behind special tokens), or as "normal",
            the always of Llama 2, where a normaliser does it.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    scheme = "always" if prepend == "normal" else prepend
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    bytes_of_text = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_of_text],
        show_progress=False,
    )
    words = [word for line in CORPUS for word in line.split()]
    tokenizer.train_from_iterator(words, trainer)
    if prepend == "normal":
        tokenizer.pre_tokenizer = None
        parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        chat_template=CHATML.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>"),
    )


GROUPED_QUERIES: dict[str, object] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def make_llama(vocab_size: int = 400, seed: int = 0, **overrides: object) -> LlamaForCausalLM:
    """Two layers, hidden 32, four query heads on two key heads, float32, random."""
    config = LlamaConfig(**({"vocab_size": vocab_size} | GROUPED_QUERIES | overrides))
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def make_qwen2(vocab_size: int = 400, seed: int = 0, **overrides: object) -> Qwen2ForCausalLM:
    """As `make_llama`, with biases on queries, keys and values."""
    config = Qwen2Config(**({"vocab_size": vocab_size} | GROUPED_QUERIES | overrides))
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config)


def make_qwen3_moe(
    vocab_size: int = 400, seed: int = 0, **overrides: object
) -> Qwen3MoeForCausalLM:
    """As `make_llama`, with four experts of which each token takes two."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    settings = {"vocab_size": vocab_size, "head_dim": 8} | GROUPED_QUERIES | experts | overrides
    torch.manual_seed(seed)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings))


def make_gpt2(vocab_size: int = 400, seed: int = 0, **overrides: object) -> GPT2LMHeadModel:
    """Two layers, hidden 32, Conv1D weights, no dropout."""
    settings: dict[str, object] = {
        "vocab_size": vocab_size,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**(settings | overrides)))


def make_stage(arguments: Any, tokenizer: PreTrainedTokenizerFast, template: Any = None) -> Stage:
    """The stage of the arguments, ready to encode."""
    stage = STAGES.get(arguments.finetuning.stage)(arguments)
    stage.fit(tokenizer, template)
    return stage


def save(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """Writes a model folder as `from_pretrained` reads it."""
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder
