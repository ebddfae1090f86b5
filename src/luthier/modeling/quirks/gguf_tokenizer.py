"""Tokenizers that `transformers` builds from a GGUF file without their rule for digits.

The file names its way of splitting text in `tokenizer.ggml.pre`. `transformers` 5.23 knows the
names with a pattern of their own (llama-bpe, qwen2, ...) and falls back to GPT-2's pattern for the
rest, also for those that part every digit before it: `" ½"` then becomes one token where the model
was trained on two. Look again when its table in integrations/gguf/gguf_tokenizer_mapping.py has
`smollm`.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

EACH_DIGIT_ALONE = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
"""Values of `tokenizer.ggml.pre` that stand for: every digit alone, then GPT-2's pattern.

Source: the table of pre-tokenizer types in llama.cpp, src/llama-vocab.cpp.
"""


def mend_gguf_tokenizer(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Puts the splitting of digits in front of the pre-tokenizer where the file asks for it."""
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(file))
    if metadata.get("tokenizer.ggml.pre") not in EACH_DIGIT_ALONE:
        return
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
