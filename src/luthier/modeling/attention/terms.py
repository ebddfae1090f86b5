"""What an attention layer wants besides softmax(q k) v, and the plain form of it."""

# H query heads, K key heads, G query heads of one key head, Q queries, N keys, D head size

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Terms(NamedTuple):
    """The terms of one attention layer.

    Attributes:
        scale: of the scores.
        window: how many tokens of its sequence a query sees, itself included; None for all.
        softcap: scores become softcap * tanh(score / softcap).
        sinks_H: a score for each query head that takes part in the softmax and has no value.
        dropout: the share of attention weights that are dropped, from torch's global generator.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None
    dropout: float = 0.0


def attend_masked(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, terms: Terms
) -> Tensor:
    """Attention written out, with all its scores in memory; on any device, in any dtype.

    Args:
        query: (B, H, Q, D).
        key: (B, K, N, D); K divides H.
        value: (B, K, N, E); E may differ from D.
        allowed: (Q, N) bool; the window is taken to be in it.
        terms: of the layer.

    Returns:
        (B, H, Q, E), softmax in float32.
    """
    batch, heads, queries, _ = query.shape
    keys = key.shape[1]
    scores = query.reshape(batch, keys, -1, query.shape[-1]) @ key.transpose(-1, -2)
    scores = scores.reshape(batch, heads, queries, -1)
    scores = scores * terms.scale
    if scores.dtype != torch.float64:
        scores = scores.float()
    if terms.softcap is not None:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    scores = scores.masked_fill(~allowed, float("-inf"))
    if terms.sinks_H is not None:
        sinks = terms.sinks_H.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
    weights = functional.dropout(weights, terms.dropout)
    out: Tensor = weights.reshape(batch, keys, -1, key.shape[2]) @ value
    return out.reshape(batch, heads, queries, -1)
