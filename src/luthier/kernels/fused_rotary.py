"""Rotary position embedding in three passes."""

# B rows, A attention heads, T tokens, D dimensions of a head

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation x cos + rotate_half(x) sin (Su et al. 2021, equation 34, by halves).

    Args:
        x: (..., D), the first half of D paired with the second.
        cos: broadcastable to `x`, without gradient.
        sin: as `cos`.

    Returns:
        As `x`, in its order in memory and the widest of the three dtypes.
    """
    y: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * cos
        x = x.to(y.dtype)
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        half = gy.shape[-1] // 2
        gx = gy * cos.to(gy.dtype)
        gx[..., :half].addcmul_(gy[..., half:], sin[..., half:])
        gx[..., half:].addcmul_(gy[..., :half], sin[..., :half], value=-1)
        return gx, None, None
