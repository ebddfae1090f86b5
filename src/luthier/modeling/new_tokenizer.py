"""Texts -> a byte-level BPE tokenizer of their own."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from luthier.errors import DataError
from luthier.templates.jinja import write_chat_template
from luthier.templates.registry import TEMPLATES

EOS, PAD = "<|endoftext|>", "<|pad|>"
SPECIAL_TOKENS = (EOS, PAD, "<|im_start|>", "<|im_end|>")

LEAST = 256 + len(SPECIAL_TOKENS)
"""The bytes, of which any text can be made, and the special tokens."""

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What no token reaches across: the pattern of Qwen2's tokenizer, each digit alone."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer that any text goes through and comes back from.

    Args:
        texts: each is learned from on its own.
        vocab_size: the most tokens, special ones and the 256 bytes included.

    Raises:
        DataError: if there is no text.
    """
    assert vocab_size >= LEAST, vocab_size
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    is_empty = True

    def seen() -> Iterable[str]:
        nonlocal is_empty
        for text in texts:
            is_empty = False
            yield text

    tokenizer.train_from_iterator(seen(), trainer)
    if is_empty:
        raise DataError("there is no text to learn a tokenizer from.")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=list(SPECIAL_TOKENS[2:]),
        chat_template=write_chat_template(TEMPLATES.get("chatml")),
        clean_up_tokenization_spaces=False,
    )
