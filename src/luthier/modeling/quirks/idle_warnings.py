"""Warnings of libraries that nobody who runs luthier can act on, silenced one by one.

Each stands here with the version whose release ends it. A warning that a user can act on is not
silenced.
"""

from __future__ import annotations

import logging
import warnings
from typing import Final

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
