"""The ways to compute a tree's attention, and which one a layer takes.

Every backend takes query (1, H, T, D), key (1, K, T, D), K dividing H, value (1, K, T, E), the tree
of the T tokens and the layer's attention arguments, and gives (1, H, T, E). The two kernels for
variable lengths are written against flash-attn 2 and torch, and checked on the CPU with plain
functions of the same signature. They were not run on a GPU.
"""

# T tokens, Q queries, N keys, P keys of all paths, H query heads, K key heads, D head size,
# E size of values

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from luthier.modeling.attention.flash_cpu import attend_flash_cpu
from luthier.modeling.attention.flex import attend_flex
from luthier.modeling.attention.mask import AttentionArguments, Paths, TreeMask
from luthier.optional import is_installed

HALVES = frozenset({torch.float16, torch.bfloat16})
FLOATS = HALVES | {torch.float32}

MOST_QUERIES = 512
"""Longer segments are cut, so that scores above the diagonal are not computed in masses."""

Kernel: TypeAlias = Callable[[Sequence[Tensor], Paths, tuple[int, int], AttentionArguments], Tensor]
"""(T, H, D), (P, K, D), (P, K, D) -> (T, H, D): causal in a window, aligned at the bottom right."""


def attend_tree(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeMask, arguments: AttentionArguments
) -> Tensor:
    """The attention of a tree's tokens, by the backend that suits device, dtype and arguments."""
    size = value.shape[-1]
    demand = Demand(
        query.device.type,
        query.dtype,
        max(query.shape[-1], size),
        has_window=tree.is_cut_by(arguments.window),
        has_softcap=arguments.softcap is not None,
        has_sinks=arguments.sinks_H is not None,
        has_dropout=arguments.dropout > 0,
    )
    backend = choose_backend(demand, available_backends())
    if backend.pads_values:
        # zeros add nothing to scores, and their values are cut off again
        width = -(-demand.head_size // backend.multiple) * backend.multiple
        query, key, value = (
            each if each.shape[-1] == width else functional.pad(each, (0, width - each.shape[-1]))
            for each in (query, key, value)
        )
    return backend.attend(query, key, value, tree.on(query.device), arguments)[..., :size]


def attend_dense(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeMask, arguments: AttentionArguments
) -> Tensor:
    """With one (T, T) mask: what every other backend has to give."""
    return _attend_masked(query, key, value, tree.allowed(arguments.window), arguments)


def attend_per_segment(
    query: Tensor, key: Tensor, value: Tensor, tree: TreeMask, arguments: AttentionArguments
) -> Tensor:
    """With scores only between a segment and the path that leads to it."""
    paths = tree.paths(arguments.window, MOST_QUERIES)
    if paths.index_P is not None:
        key = key.index_select(2, paths.index_P)
        value = value.index_select(2, paths.index_P)
    pieces = []
    for q, k, v in zip(
        torch.split(query, paths.query_lengths, dim=2),
        torch.split(key, paths.key_lengths, dim=2),
        torch.split(value, paths.key_lengths, dim=2),
        strict=True,
    ):
        # the last query sees the last key, each query so many before as the window says
        shape = (q.shape[2], k.shape[2])
        diagonal = shape[1] - shape[0]
        allowed = torch.ones(shape, dtype=torch.bool, device=q.device).tril(diagonal)
        if arguments.window is not None:
            allowed = allowed.triu(diagonal - arguments.window + 1)
        pieces.append(_attend_masked(q, k, v, allowed, arguments))
    return torch.cat(pieces, 2)


def _attend_masked(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, arguments: AttentionArguments
) -> Tensor:
    """Written out, with all scores in memory and the softmax in float32; `allowed` is (Q, N)."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[1]
    scores = query.reshape(batch, keys, -1, query.shape[-1]) @ key.transpose(-1, -2)
    scores = scores.reshape(batch, heads, queries, -1)
    scores = scores * arguments.scale
    if scores.dtype != torch.float64:
        scores = scores.float()
    if arguments.softcap is not None:
        scores = torch.tanh(scores / arguments.softcap) * arguments.softcap
    scores = scores.masked_fill(~allowed, float("-inf"))
    if arguments.sinks_H is not None:
        sinks = arguments.sinks_H.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
    weights = functional.dropout(weights, arguments.dropout)
    out: Tensor = weights.reshape(batch, keys, -1, key.shape[2]) @ value
    return out.reshape(batch, heads, queries, -1)


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TreeMask,
    arguments: AttentionArguments,
    kernel: Kernel,
) -> Tensor:
    """By one call of a kernel for variable lengths on gathered keys; in memory (1, T, H, D).

    The keys of a path are neighbours in depth, so the kernel's window acts on depth.
    """
    paths = tree.paths(arguments.window)
    query_THD, key_PKD, value_PKD = (each[0].transpose(0, 1) for each in (query, key, value))
    if paths.index_P is not None:
        key_PKD = key_PKD.index_select(0, paths.index_P)
        value_PKD = value_PKD.index_select(0, paths.index_P)
    before = -1 if arguments.window is None else arguments.window - 1
    window = (before if tree.is_cut_by(arguments.window) else -1, 0)
    return kernel((query_THD, key_PKD, value_PKD), paths, window, arguments).transpose(0, 1)[None]


def flash_attn_kernel(function: Callable[..., Any] | None = None) -> Kernel:
    """`flash_attn_varlen_func` of flash-attn 2, or a function of its signature."""
    call = function or importlib.import_module("flash_attn").flash_attn_varlen_func
    return lambda inputs, paths, window, arguments: call(
        *inputs,
        cu_seqlens_q=paths.query_bounds,
        cu_seqlens_k=paths.key_bounds,
        max_seqlen_q=max(paths.query_lengths),
        max_seqlen_k=max(paths.key_lengths),
        dropout_p=arguments.dropout,
        softmax_scale=arguments.scale,
        causal=True,
        window_size=window,
        softcap=arguments.softcap or 0.0,
    )


def torch_kernel(function: Callable[..., Any] | None = None) -> Kernel:
    """`torch.nn.attention.varlen.varlen_attn`, or a function of its signature."""
    call = function or importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return lambda inputs, paths, window, arguments: call(
        *inputs,
        paths.query_bounds,
        paths.key_bounds,
        max(paths.query_lengths),
        max(paths.key_lengths),
        scale=arguments.scale,
        window_size=window,
        enable_gqa=inputs[0].shape[1] != inputs[1].shape[1],
    )


class Demand(NamedTuple):
    """What a layer asks of a backend."""

    device: str  # its type: "cpu", "cuda", ...
    dtype: torch.dtype  # of queries, keys and values
    head_size: int  # the larger of D and E
    has_window: bool = False  # whether a sliding window hides anything
    has_softcap: bool = False  # whether scores are capped
    has_sinks: bool = False  # whether the softmax has sinks
    has_dropout: bool = False  # whether attention weights are dropped


class Backend(NamedTuple):
    """One way, and what it can do."""

    name: str  # of the way
    attend: Callable[[Tensor, Tensor, Tensor, TreeMask, AttentionArguments], Tensor]
    """See the top of this file."""
    lacks: tuple[str, ...] = ()  # what a layer may ask and it does not do
    devices: frozenset[str] | None = None  # types of devices; None for all
    dtypes: frozenset[torch.dtype] | None = None  # of queries, keys and values; None for all
    head_sizes: tuple[int, int] = (1, 2**31)  # the least and the most, after padding
    multiple: int = 1  # of which head sizes have to be; narrower ones are padded
    pads_values: bool = False
    """Whether values have to be as wide as queries; narrower ones are padded."""

    def can(self, demand: Demand) -> bool:
        """Whether it can do all that is asked."""
        least, most = self.head_sizes
        return (
            (self.devices is None or demand.device in self.devices)
            and (self.dtypes is None or demand.dtype in self.dtypes)
            and least <= demand.head_size <= most
            and not any(getattr(demand, f"has_{each}") for each in self.lacks)
        )


BACKENDS = (
    Backend(
        "flash_cpu",
        attend_flash_cpu,
        lacks=("window", "softcap", "dropout"),
        devices=frozenset({"cpu"}),
        dtypes=FLOATS | {torch.float64},
        pads_values=True,
    ),
    Backend(
        "flash_attn",
        lambda q, k, v, tree, arguments: attend_varlen(
            q, k, v, tree, arguments, flash_attn_kernel()
        ),
        lacks=("sinks",),
        devices=frozenset({"cuda"}),
        dtypes=HALVES,
        head_sizes=(1, 256),
        pads_values=True,
    ),
    Backend(
        "torch_varlen",
        lambda q, k, v, tree, arguments: attend_varlen(q, k, v, tree, arguments, torch_kernel()),
        lacks=("softcap", "sinks", "dropout"),
        devices=frozenset({"cuda"}),
        dtypes=HALVES,
        head_sizes=(1, 256),
        multiple=8,
        pads_values=True,
    ),
    Backend(
        "flex",
        attend_flex,
        lacks=("dropout",),
        devices=frozenset({"cuda"}),
        dtypes=FLOATS,
        head_sizes=(16, 256),
    ),
    Backend("per_segment", attend_per_segment),
)
"""In order of preference; the last one can do everything."""


def choose_backend(demand: Demand, available: Collection[str]) -> Backend:
    """The first backend, of those whose names are available, that can do what is asked."""
    return next(each for each in BACKENDS if each.name in available and each.can(demand))


@cache
def available_backends() -> frozenset[str]:
    """Names of the backends that this machine's packages and GPU allow."""
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


def _torch_knows_windows() -> bool:
    """The arguments came to `varlen_attn` one by one; remove when torch >= 2.13 is required."""
    if torch.__version__ < "2.10":
        return False
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters.keys()
    return {"scale", "window_size", "enable_gqa"} <= known
