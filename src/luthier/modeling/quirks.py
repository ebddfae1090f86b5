"""What certain versions and files do wrong, mended until the day named beside each."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, Final

import transformers
from packaging.version import Version
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, modeling_gguf_pytorch_utils

IS_RENAMED = Version(transformers.__version__) >= Version("5.23")


def enable_checkpointing(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Switches it on in every layer.

    Args:
        model: one that supports it.
        settings: keyword arguments of `torch.utils.checkpoint.checkpoint`.
    """
    if IS_RENAMED:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=dict(settings))
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(settings))


def draw_on_terminals_only() -> None:
    """Takes the bar off what is no terminal; calling it again changes nothing."""
    bar = modeling_gguf_pytorch_utils.tqdm
    if not isinstance(bar, partial):
        modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=None)


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


WARNINGS: Final = (
    # peft asks by the old name whether activations are checkpointed; transformers 6 drops the name.
    # Remove with a peft that asks for `is_activation_checkpointing`; 0.21.2 does not.
    (r"`is_gradient_checkpointing` is deprecated", FutureWarning),
    # one of an embedding and a head that are one matrix is adapted alone only by an adapter from
    # elsewhere or DoRA, and neither is merged; peft 0.21.2 warns of that.
    (r"Model has `tie_word_embeddings=True` and a tied layer", UserWarning),
    # GPT-2 has layers of both kinds; peft 0.21.2 sets the switch for each, and says so.
    (r"fan_in_fan_out is set to", UserWarning),
    # ranks of experts; peft 0.21.2 uses them, and looks for them among modules alone.
    (r"The following (rank|alpha)_pattern keys did not match", RuntimeWarning),
    # the weights are merged and both copies are equal; 0.21.2 unties them in the configuration.
    (r"Input and output embeddings are no longer tied after merging", UserWarning),
    # both are given by transformers 5.23 wherever the steps of the stable part are named
    (r"Both num_training_steps and num_stable_steps are specified", UserWarning),
    # deepspeed 0.19.8 calls collectives by the names that they had before torch 2.13
    (r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is dep", FutureWarning),
)
"""How each message begins, and its class."""

LOG_LINES: Final = (
    # the trainer of transformers 5.23 sets what fit_tokenizer chose and said before
    ("transformers.trainer_utils", "The tokenizer has new PAD/BOS/EOS tokens"),
    # checkpoints are then ordered by their number, which is right; transformers 5.23
    ("transformers.trainer_utils", "mtime may not be reliable on this filesystem"),
)
"""A logger, and how a line of it begins."""


def silence_idle_warnings() -> None:
    """Ignores exactly the messages named above; calling it again changes nothing."""
    for message, category in WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    for name, _ in LOG_LINES:
        logging.getLogger(name).addFilter(_is_needed)


def _is_needed(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not any(record.name == name and text.startswith(begin) for name, begin in LOG_LINES)


CAPACITY = 256
"""Enough for a micro-batch of 30 lengths; with fewer, every layer would make its own again."""

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The library's own and torch's; both are read at the first product."""


def keep_fewer_products() -> None:
    """Bounds both, unless the environment says how many; changes no result."""
    for name in NAMES:
        os.environ.setdefault(name, str(CAPACITY))


def mend_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a tokenizer the library's own `_pad` where its class has an outdated one."""
    parameters = inspect.signature(tokenizer._pad).parameters
    takes_anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if "padding_side" not in parameters and not takes_anything:
        tokenizer._pad = MethodType(PreTrainedTokenizerBase._pad, tokenizer)
