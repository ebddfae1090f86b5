"""A tree's attention with the whole mask, and segment by segment: any device, all terms."""

# T tokens, H query heads, K key heads, D head size

from __future__ import annotations

import torch
from torch import Tensor

from luthier.modeling.attention.mask import TreeMask
from luthier.modeling.attention.terms import Terms, attend_masked

MOST_QUERIES = 512
"""Longer segments are cut, so that scores above the diagonal are not computed in masses."""


def attend_dense(query: Tensor, key: Tensor, value: Tensor, tree: TreeMask, terms: Terms) -> Tensor:
    """With one (T, T) mask: what every other path has to give.

    Args:
        query: (1, H, T, D).
        key: (1, K, T, D); K divides H.
        value: (1, K, T, E).
        tree: of the T tokens.
        terms: of the layer.

    Returns:
        (1, H, T, E).
    """
    return attend_masked(query, key, value, tree.allowed(terms.window), terms)


def attend_per_segment(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeMask, terms: Terms
) -> Tensor:
    """As `attend_dense`, with scores only between a segment and the path that leads to it."""
    paths = tree.paths(terms.window, MOST_QUERIES)
    if paths.index_P is not None:
        key = key.index_select(2, paths.index_P)
        value = value.index_select(2, paths.index_P)
    pieces = zip(
        torch.split(query, paths.query_lengths, dim=2),
        torch.split(key, paths.key_lengths, dim=2),
        torch.split(value, paths.key_lengths, dim=2),
        strict=True,
    )
    return torch.cat([attend_masked(q, k, v, _band(q, k, terms), terms) for q, k, v in pieces], 2)


def _band(query: Tensor, key: Tensor, terms: Terms) -> Tensor:
    """(Q, N): the last query sees the last key, each query so many before as the window says."""
    shape = (query.shape[2], key.shape[2])
    diagonal = shape[1] - shape[0]
    band = torch.ones(shape, dtype=torch.bool, device=query.device).tril(diagonal)
    return band if terms.window is None else band.triu(diagonal - terms.window + 1)
