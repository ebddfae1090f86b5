"""The ways to compute a tree's attention, and which one a layer takes."""

# T tokens, Q queries, N keys, P keys of all paths, H query heads, K key heads, D head size,
# E size of values

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import pad

from luthier.modeling.attention.flash_cpu import attend_flash_cpu
from luthier.modeling.attention.flex import attend_flex
from luthier.modeling.attention.mask import Paths, Terms, TreeMask
from luthier.optional import is_installed


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


HALVES = frozenset({torch.float16, torch.bfloat16})
FLOATS = HALVES | {torch.float32}


@dataclass(frozen=True)
class Demand:
    """What a layer asks of a path.

    Attributes:
        device: its type: "cpu", "cuda", ...
        dtype: of queries, keys and values.
        head_size: the larger of D and E.
        has_window: whether a sliding window hides anything.
        has_softcap: whether scores are capped.
        has_sinks: whether the softmax has sinks.
        has_dropout: whether attention weights are dropped.
    """

    device: str
    dtype: torch.dtype
    head_size: int
    has_window: bool = False
    has_softcap: bool = False
    has_sinks: bool = False
    has_dropout: bool = False


@dataclass(frozen=True)
class Path:
    """One way, and what it can do.

    Attributes:
        name: of the path.
        attend: takes and gives what `attend_dense` does.
        devices: types of devices; None for all.
        dtypes: of queries, keys and values; None for all.
        head_sizes: the least and the most, after padding.
        multiple: of which head sizes have to be; narrower ones are padded.
        pads_values: whether values have to be as wide as queries; narrower ones are padded.
        window: whether it knows sliding windows.
        softcap: whether it knows softcapping.
        sinks: whether it knows sinks.
        dropout: whether it knows attention dropout.
    """

    name: str
    attend: Callable[[Tensor, Tensor, Tensor, TreeMask, Terms], Tensor]
    devices: frozenset[str] | None = None
    dtypes: frozenset[torch.dtype] | None = None
    head_sizes: tuple[int, int] = (1, 2**31)
    multiple: int = 1
    pads_values: bool = False
    window: bool = True
    softcap: bool = True
    sinks: bool = True
    dropout: bool = True

    def can(self, demand: Demand) -> bool:
        """Whether it can do all that is asked."""
        least, most = self.head_sizes
        return (
            (self.devices is None or demand.device in self.devices)
            and (self.dtypes is None or demand.dtype in self.dtypes)
            and least <= demand.head_size <= most
            and (self.window or not demand.has_window)
            and (self.softcap or not demand.has_softcap)
            and (self.sinks or not demand.has_sinks)
            and (self.dropout or not demand.has_dropout)
        )


def _attend_flash_attn(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeMask, terms: Terms
) -> Tensor:
    return attend_varlen(query, key, value, tree, terms, _flash_attn())


def _attend_torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeMask, terms: Terms
) -> Tensor:
    return attend_varlen(query, key, value, tree, terms, _torch())


_flash_attn: Callable[[], Kernel] = cache(flash_attn_kernel)
_torch: Callable[[], Kernel] = cache(torch_kernel)

PATHS = (
    Path(
        "flash_cpu",
        attend_flash_cpu,
        devices=frozenset({"cpu"}),
        dtypes=FLOATS | {torch.float64},
        pads_values=True,
        window=False,
        softcap=False,
        dropout=False,
    ),
    Path(
        "flash_attn",
        _attend_flash_attn,
        devices=frozenset({"cuda"}),
        dtypes=HALVES,
        head_sizes=(1, 256),
        pads_values=True,
        sinks=False,
    ),
    Path(
        "torch_varlen",
        _attend_torch_varlen,
        devices=frozenset({"cuda"}),
        dtypes=HALVES,
        head_sizes=(1, 256),
        multiple=8,
        pads_values=True,
        softcap=False,
        sinks=False,
        dropout=False,
    ),
    Path(
        "flex",
        attend_flex,
        devices=frozenset({"cuda"}),
        dtypes=FLOATS,
        head_sizes=(16, 256),
        dropout=False,
    ),
    Path("per_segment", attend_per_segment),
)
"""In order of preference; the last one can do everything."""


def choose_path(demand: Demand, available: Collection[str]) -> Path:
    """The first path that can do what is asked.

    Args:
        demand: of the layer.
        available: names of the paths whose packages are there.
    """
    return next(path for path in PATHS if path.name in available and path.can(demand))


@cache
def available_paths() -> frozenset[str]:
    """Names of the paths that this machine's packages and GPU allow."""
    names = {"flash_cpu", "per_segment"}
    if torch.cuda.is_available():
        is_ampere = torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)
        if is_installed("flash_attn") and (is_ampere or torch.version.hip is not None):
            names.add("flash_attn")
        if is_ampere and _torch_knows_windows():
            names.add("torch_varlen")
        if is_installed("triton"):
            names.add("flex")
    return frozenset(names)


def attend_tree(query: Tensor, key: Tensor, value: Tensor, tree: TreeMask, terms: Terms) -> Tensor:
    """The attention of a tree's tokens, by the path that suits device, dtype and terms.

    Args:
        query: (1, H, T, D).
        key: (1, K, T, D); K divides H.
        value: (1, K, T, E).
        tree: of the T tokens.
        terms: of the layer.

    Returns:
        (1, H, T, E).
    """
    demand = Demand(
        query.device.type,
        query.dtype,
        max(query.shape[-1], value.shape[-1]),
        has_window=tree.is_cut_by(terms.window),
        has_softcap=terms.softcap is not None,
        has_sinks=terms.sinks_H is not None,
        has_dropout=terms.dropout > 0,
    )
    path = choose_path(demand, available_paths())
    tree = tree.on(query.device)
    size = value.shape[-1]
    if path.pads_values:
        query, key, value = _widen(
            query, key, value, -(-demand.head_size // path.multiple) * path.multiple
        )
    return path.attend(query, key, value, tree, terms)[..., :size]


def _widen(query: Tensor, key: Tensor, value: Tensor, size: int) -> tuple[Tensor, ...]:
    """All of one head size; zeros add nothing to scores, and their values are cut off again."""
    return tuple(
        each if each.shape[-1] == size else pad(each, (0, size - each.shape[-1]))
        for each in (query, key, value)
    )


def _torch_knows_windows() -> bool:
    """The arguments came to `varlen_attn` one by one; remove when torch >= 2.13 is required."""
    if torch.__version__ < "2.10":
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(
        varlen_attn
    ).parameters.keys()
