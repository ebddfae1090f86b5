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

# 5.23 renamed how gradient checkpointing is switched on and warns about the old name; 5.20, the
# newest release for Python 3.10, knows only that one. Remove when 3.11 is the lowest Python.
IS_RENAMED = Version(transformers.__version__) >= Version("5.23")


def enable_checkpointing(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Switches gradient checkpointing on in every layer of a model that supports it."""
    if IS_RENAMED:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=dict(settings))
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(settings))


def draw_on_terminals_only() -> None:
    """Takes the bar that shows how a GGUF file is read off what is no terminal.

    transformers 5.23 draws it into logs, too, a line for each tensor. Remove when it asks
    `transformers.utils.logging` whether bars are wanted, as it does for other files.
    """
    bar = modeling_gguf_pytorch_utils.tqdm
    if not isinstance(bar, partial):
        modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=None)


EACH_DIGIT_ALONE = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
"""Values of `tokenizer.ggml.pre` that stand for: every digit alone, then GPT-2's pattern.

Source: the table of pre-tokenizer types in llama.cpp, src/llama-vocab.cpp.
"""


def mend_gguf_tokenizer(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Puts the splitting of digits in front of the pre-tokenizer where the file asks for it.

    The file names its way of splitting text in `tokenizer.ggml.pre`. transformers 5.23 knows the
    names with a pattern of their own (llama-bpe, qwen2, ...) and falls back to GPT-2's pattern for
    the rest, also for those that part every digit before it: `" ½"` then becomes one token where
    the model was trained on two. Look again when its table in
    integrations/gguf/gguf_tokenizer_mapping.py has `smollm`.
    """
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
"""Warnings that nobody who runs luthier can act on: how each message begins, and its class."""

LOG_LINES: Final = (
    # transformers 5.23 sets what fit_tokenizer chose and said before
    ("transformers.trainer_utils", "The tokenizer has new PAD/BOS/EOS tokens"),
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
    """Has oneDNN keep less of the code that it makes for half-precision products; same results.

    Each product of other sizes is a program of its own, and a token tree has another number of
    tokens at every step. torch 2.13 keeps the last 1,024, half a megabyte each: a run in bfloat16
    grew by 70 to 100 MiB a step until it took more than one in float32. A micro-batch makes about
    100 of them, which every layer uses again. What the environment says stays. Remove when torch
    bounds what it keeps by bytes.
    """
    for name in NAMES:
        os.environ.setdefault(name, str(CAPACITY))


def mend_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a tokenizer the library's own `_pad` where its class has an outdated one.

    transformers 4.45 began to hand `padding_side` to `_pad`; code that was written before
    (ChatGLM's) takes no such argument and fails on the first batch. No class of transformers 5.23
    itself is concerned. Remove when `trust_remote_code` tokenizers are gone.
    """
    parameters = inspect.signature(tokenizer._pad).parameters
    takes_anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if "padding_side" not in parameters and not takes_anything:
        tokenizer._pad = MethodType(PreTrainedTokenizerBase._pad, tokenizer)
