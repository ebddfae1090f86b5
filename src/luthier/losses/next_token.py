"""Cross-entropy of the next token."""

# N reads (positions that predict a learned token), V vocabulary

from __future__ import annotations

import torch
from torch import Tensor


def next_token_nll(logits_NV: Tensor, targets_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Sum of the negative log-likelihoods of the targets.

    Args:
        logits_NV: (N, V), any float dtype; computed in float32.
        targets_N: (N,) int64.
        label_smoothing: epsilon of Szegedy et al. 2015, section 7: the target distribution is
            (1 - epsilon) on the token and epsilon spread evenly over the vocabulary.

    Returns:
        A float32 scalar, zero where N is 0.
    """
    return torch.nn.functional.cross_entropy(
        logits_NV.float(), targets_N, reduction="sum", label_smoothing=label_smoothing
    )


def count_correct(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """How many targets have the largest logit; an int64 scalar."""
    return (logits_NV.argmax(dim=-1) == targets_N).sum()
