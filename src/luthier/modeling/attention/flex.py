"""A tree's attention by torch's FlexAttention: the rule of the mask, compiled into a kernel.

Checked on the CPU through the uncompiled form of the same function. It was not run on a GPU.
"""

# T tokens, H query heads, K key heads, D head size, N blocks of tokens

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from luthier.modeling.attention.mask import AttentionArguments, TreeMask

BLOCK = 128
"""Tokens of a block, the size that the kernels are tuned for."""


def attend_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TreeMask,
    arguments: AttentionArguments,
    function: Callable[..., Any] | None = None,
) -> Tensor:
    """A backend of `backends.py`, without dropout.

    `function` is `flex_attention` or its compiled form, which is the default.
    """
    call = function or _compiled()
    window = arguments.window if tree.is_cut_by(arguments.window) else None
    out, aux = call(
        query,
        key,
        value,
        score_mod=None if arguments.softcap is None else _softcap(arguments.softcap),
        block_mask=tree.keep(("blocks", window), lambda: block_mask(tree, window)),
        scale=arguments.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if arguments.sinks_H is not None:
        share = torch.sigmoid(aux.lse - arguments.sinks_H.to(aux.lse.dtype)[None, :, None])
        out = out * share[..., None].to(out.dtype)
    attended: Tensor = out
    return attended


def block_mask(tree: TreeMask, window: int | None) -> BlockMask:
    """The tree's mask, with the blocks that are wholly hidden or wholly seen told apart.

    They are found from the blocks' extremes, so no (T, T) matrix is made. A block that the
    extremes cannot tell is called partly seen; the rule itself is then asked inside the kernel.
    """
    ends_T, depths_T = tree.ends_T, tree.depths_T

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < ends_T[key])
        return seen if window is None else seen & (depths_T[query] - depths_T[key] < window)

    least_end, most_end = _extremes(ends_T)
    least_depth, most_depth = _extremes(depths_T)
    number = torch.arange(len(least_end), device=tree.device)
    below = number[:, None] > number[None, :]
    first = number * BLOCK
    last = torch.clamp(first + BLOCK, max=tree.num_tokens) - 1
    seen = below & (most_end[None, :] > first[:, None]) | torch.diag(
        torch.ones_like(below[0]) | True
    )
    full = below & (least_end[None, :] > last[:, None])
    if window is not None:
        seen &= least_depth[:, None] - most_depth[None, :] < window
        full &= most_depth[:, None] - least_depth[None, :] < window
    return BlockMask.from_kv_blocks(
        *_listed(seen & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(tree.num_tokens, tree.num_tokens),
    )


def _extremes(values_T: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) each: the least and the greatest value of every block."""
    room = -len(values_T) % BLOCK
    last = values_T[-1:].expand(room)
    blocks = torch.cat([values_T, last]).view(-1, BLOCK)
    return blocks.amin(1), blocks.amax(1)


def _listed(chosen_NN: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 1, N) counts and (1, 1, N, N) indices: the chosen ones of each row first, in order."""
    order = torch.argsort(chosen_NN.to(torch.int8), dim=-1, descending=True, stable=True)
    counts = chosen_NN.sum(-1)
    return counts[None, None].to(torch.int32), order[None, None].to(torch.int32)


def _softcap(softcap: float) -> Callable[..., Tensor]:
    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


@cache
def _compiled() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention)
    return compiled
