"""RMSNorm in few passes, and a memory of its input so that its output need not be kept."""

# N rows (tokens), H hidden

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NUMBERS_PER_THREAD = 1 << 18
"""Of one tensor in one block: 1 MiB of float32, so that a few of them share a thread's caches."""

PRODUCT_ROWS_PER_THREAD = 256
LEAST_PRODUCT_ROWS = 512
"""A matrix product of 512 rows runs at 0.98 of the speed of one of 1,536 (EPYC, float32)."""


def row_blocks(tensor_NW: Tensor) -> Iterator[slice]:
    """Cuts the rows of a matrix for operations on one number after the other, that stay in a cache.

    On another device than a CPU there is one block: its kernels are started one by one, and few
    large ones are what it wants.
    """
    num_rows, width = tensor_NW.shape
    rows = num_rows
    if tensor_NW.device.type == "cpu":
        rows = max(16, NUMBERS_PER_THREAD * torch.get_num_threads() // max(width, 1))
    return _cut(num_rows, rows)


def product_blocks(tensor_NW: Tensor) -> Iterator[slice]:
    """As `row_blocks`, for operations that contain matrix products."""
    rows = num_rows = tensor_NW.shape[0]
    if tensor_NW.device.type == "cpu":
        rows = max(LEAST_PRODUCT_ROWS, PRODUCT_ROWS_PER_THREAD * torch.get_num_threads())
    return _cut(num_rows, rows)


def _cut(num_rows: int, most: int) -> Iterator[slice]:
    num_blocks = max(1, -(-num_rows // max(most, 1)))
    for i in range(num_blocks):
        yield slice(i * num_rows // num_blocks, (i + 1) * num_rows // num_blocks)


class NormFormula(NamedTuple):
    """What tells one model's RMSNorm from another's (Zhang and Sennrich 2019, equation 4)."""

    eps: float  # added to the mean square under the root
    shift: float = 0.0  # added to the weight: 1 where a model stores the distance from one (Gemma)
    casts_first: bool = True
    """Whether the normalised input is rounded to its own dtype before it meets the weight, as in
    Llama, whose result has the wider of both dtypes; otherwise the product is made in float32 and
    rounded to the input's dtype."""


class NormOrigin(NamedTuple):
    """What a norm's output can be made from again; the norm keeps these tensors anyway."""

    x_NH: Tensor
    rstd_N1: Tensor
    weight_H: Tensor
    formula: NormFormula

    def remake(self) -> Tensor:
        """The norm's output, (N, H), outside of any graph."""
        dtype = _result_dtype(self.x_NH, self.weight_H, self.formula)
        y_NH = self.x_NH.new_empty(self.x_NH.shape, dtype=dtype)
        with torch.no_grad():
            for rows in row_blocks(y_NH):
                x_BH, rstd_B1 = self.x_NH[rows], self.rstd_N1[rows]
                _scale(x_BH, rstd_B1, self.weight_H, self.formula, y_NH[rows])
        return y_NH


def rms_norm(x: Tensor, weight: Tensor, formula: NormFormula) -> Tensor:
    """The norm over the last dimension, x / sqrt(mean(x^2) + eps) * (shift + weight).

    Args:
        x: (..., H), any floating dtype; computed in float32 or wider.
        weight: (H,); its gradient is made only where it is asked for.
        formula: of the model.

    Returns:
        (..., H). This very object remembers where it comes from, see `norm_origin`.
    """
    x_NH = x.detach().reshape(-1, x.shape[-1])
    rstd_N1 = x.new_empty((x_NH.shape[0], 1), dtype=_wide(x.dtype))
    y: Tensor = _RmsNorm.apply(x, weight, rstd_N1, formula)  # type: ignore[no-untyped-call]
    if y.requires_grad:
        origin = NormOrigin(x_NH, rstd_N1, weight, formula)
        vars(y)["norm_origin"] = (origin, y._version)
    return y


def norm_origin(y: Tensor) -> NormOrigin | None:
    """Where a tensor comes from, if `rms_norm` returned this object and nobody changed it since."""
    origin: NormOrigin | None
    origin, version = vars(y).get("norm_origin", (None, -1))
    return origin if version == y._version else None


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_H: Tensor, rstd_N1: Tensor, formula: NormFormula
    ) -> Tensor:
        x_NH = x.reshape(-1, x.shape[-1])
        y = x.new_empty(x.shape, dtype=_result_dtype(x, weight_H, formula))
        y_NH = y.view(x_NH.shape)
        for rows in row_blocks(x_NH):
            x_BH, rstd_B1 = x_NH[rows].to(rstd_N1.dtype), rstd_N1[rows]
            torch.linalg.vector_norm(x_BH, dim=-1, keepdim=True, out=rstd_B1)
            rstd_B1.square_().div_(x.shape[-1]).add_(formula.eps).rsqrt_()
            _scale(x_NH[rows], rstd_B1, weight_H, formula, y_NH[rows])
        ctx.save_for_backward(x, weight_H, rstd_N1)
        ctx.formula = formula
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        # y = s n with n = x r:  dx = r (s dy - n mean(s dy n)),  dw = sum over rows of dy n
        x, weight_H, rstd_N1 = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        width, wide = x.shape[-1], rstd_N1.dtype
        x_NH, gy_NH = x.reshape(-1, width), gy.reshape(-1, width)
        scale_H = _weight(weight_H, ctx.formula, wide)
        gx_NH = torch.empty_like(x_NH) if wants_x else None
        gweight_H = torch.zeros_like(scale_H) if wants_weight else None
        for rows in row_blocks(x_NH):
            x_BH, gy_BH, rstd_B1 = x_NH[rows].to(wide), gy_NH[rows].to(wide), rstd_N1[rows]
            if gweight_H is not None:
                gweight_H += (x_BH * rstd_B1).mul_(gy_BH).sum(0)
            if gx_NH is not None:
                out = gx_NH[rows] if x.dtype == wide else None
                gx_BH = torch.mul(gy_BH, scale_H, out=out)
                mean_B1 = (gx_BH * x_BH).sum(-1, keepdim=True).div_(-width)
                mean_B1.mul_(rstd_B1).mul_(rstd_B1)
                gx_BH.addcmul_(x_BH, mean_B1).mul_(rstd_B1)
                if out is None:
                    gx_NH[rows] = gx_BH
        gx = None if gx_NH is None else gx_NH.view(x.shape)
        return gx, None if gweight_H is None else gweight_H.to(weight_H.dtype), None, None


def _scale(
    x_BH: Tensor, rstd_B1: Tensor, weight_H: Tensor, formula: NormFormula, out_BH: Tensor
) -> None:
    wide = rstd_B1.dtype
    if x_BH.dtype == wide == out_BH.dtype == weight_H.dtype:
        torch.mul(x_BH, rstd_B1, out=out_BH)
        out_BH.mul_(_weight(weight_H, formula, wide))
    elif formula.casts_first:
        torch.mul((x_BH.to(wide) * rstd_B1).to(x_BH.dtype), weight_H, out=out_BH)
    else:
        out_BH.copy_((x_BH.to(wide) * rstd_B1).mul_(_weight(weight_H, formula, wide)))


def _weight(weight_H: Tensor, formula: NormFormula, wide: torch.dtype) -> Tensor:
    weight_H = weight_H.to(wide)
    return weight_H + formula.shift if formula.shift else weight_H


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _result_dtype(x: Tensor, weight_H: Tensor, formula: NormFormula) -> torch.dtype:
    return torch.promote_types(x.dtype, weight_H.dtype) if formula.casts_first else x.dtype
