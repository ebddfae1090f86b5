"""A tree's attention by one call of a variable-length flash kernel on gathered keys.

Written against the interfaces of flash-attn 2 and torch; checked on the CPU with a plain function
of the same signature. It was not run on a GPU.
"""

# T tokens, P keys of all paths together, H query heads, K key heads, D head size

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from luthier.modeling.attention.mask import Paths, TreeMask
from luthier.modeling.attention.terms import Terms

Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Paths, Terms], Tensor]
"""(T, H, D), (P, K, D), (P, K, D) -> (T, H, D): causal, aligned at the bottom right."""


def attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeMask, terms: Terms, kernel: Kernel
) -> Tensor:
    """As `attend_dense`; which terms are honoured depends on the kernel.

    The keys of a path are neighbours in depth, so the kernel's window acts on depth.

    Args:
        query: (1, H, T, D).
        key: (1, K, T, D); K divides H.
        value: (1, K, T, D).
        tree: of the T tokens.
        terms: of the layer.
        kernel: `flash_attn_kernel()` or `torch_kernel()`.

    Returns:
        (1, H, T, D), in memory (1, T, H, D).
    """
    paths = tree.paths(terms.window)
    query_THD, key_PKD, value_PKD = (each[0].transpose(0, 1) for each in (query, key, value))
    if paths.index_P is not None:
        key_PKD = key_PKD.index_select(0, paths.index_P)
        value_PKD = value_PKD.index_select(0, paths.index_P)
    if not tree.is_cut_by(terms.window):
        terms = terms._replace(window=None)
    return kernel(query_THD, key_PKD, value_PKD, paths, terms).transpose(0, 1)[None]


def flash_attn_kernel(function: Callable[..., Any] | None = None) -> Kernel:
    """`flash_attn_varlen_func` of flash-attn 2; knows softcap, windows and dropout.

    Args:
        function: of its signature; by default the installed one.
    """
    call = function or importlib.import_module("flash_attn").flash_attn_varlen_func

    def kernel(query: Tensor, key: Tensor, value: Tensor, paths: Paths, terms: Terms) -> Tensor:
        out: Tensor = call(
            query,
            key,
            value,
            cu_seqlens_q=paths.query_bounds,
            cu_seqlens_k=paths.key_bounds,
            max_seqlen_q=max(paths.query_lengths),
            max_seqlen_k=max(paths.key_lengths),
            dropout_p=terms.dropout,
            softmax_scale=terms.scale,
            causal=True,
            window_size=(_tokens_before(terms), 0),
            softcap=terms.softcap or 0.0,
        )
        return out

    return kernel


def torch_kernel(function: Callable[..., Any] | None = None) -> Kernel:
    """`torch.nn.attention.varlen.varlen_attn`; knows windows.

    Args:
        function: of its signature; by default torch's.
    """
    call = function or importlib.import_module("torch.nn.attention.varlen").varlen_attn

    def kernel(query: Tensor, key: Tensor, value: Tensor, paths: Paths, terms: Terms) -> Tensor:
        out: Tensor = call(
            query,
            key,
            value,
            paths.query_bounds,
            paths.key_bounds,
            max(paths.query_lengths),
            max(paths.key_lengths),
            scale=terms.scale,
            window_size=(_tokens_before(terms), 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out

    return kernel


def _tokens_before(terms: Terms) -> int:
    """How far back a query sees, itself not counted; -1 for all the way."""
    return -1 if terms.window is None else terms.window - 1
