"""Linear layers with low-rank updates (LoRA): one autograd function for all that read one input."""

# N rows (tokens), I inputs, O outputs, R rank, P projections

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.kernels.fused_norm import NormOrigin, norm_origin
from luthier.kernels.kept_input import keep_input
from luthier.kernels.projection import (
    GradientSums,
    Projection,
    apply_projection,
    as_projections,
    input_gradient,
    without_autocast,
)


def lora_linear(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """Several projections of one input.

    Kept for the backward pass: `x` once (not even that where `rms_norm` made it: it is made
    again) and A x^T of each. The gradient of `x` is one sum. Under autocast all products are made
    in its dtype. Otherwise the products with the weight are made in its dtype, which must be that
    of `x`, and the low-rank ones in theirs, their sum rounded to the former, as peft does.

    Args:
        x: (..., I).
        projections: P of them; gradients are made of those tensors that require one.

    Returns:
        P outputs, (..., O).
    """
    tensors = (each for projection in projections for each in projection.tensors)
    scalings = tuple(projection.scaling for projection in projections)
    result: tuple[Tensor, ...] = _LoraLinear.apply(x, norm_origin(x), scalings, *tensors)  # type: ignore[no-untyped-call]
    return result


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        origin: NormOrigin | None,
        scalings: tuple[float, ...],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.kept, x_NI, saved = keep_input(x, origin)
        ctx.scalings = scalings
        outputs, lows = [], []
        for projection in as_projections(tensors, scalings):
            y = x_NI.new_empty((*x.shape[:-1], projection.weight.shape[0]))
            y_NO = y.view(-1, y.shape[-1])
            _, h_RN = apply_projection(x_NI, projection.to(ctx.kept.computed_dtype), y_NO)
            outputs.append(y)
            lows.append(h_RN)
        ctx.save_for_backward(*saved, *tensors, *lows)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gys: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, saved = ctx.kept, ctx.saved_tensors
        first, last = kept.num_tensors, len(saved) - len(gys)
        wants_x, wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        gx_NI = x_NI = None
        gradients: list[Tensor | None] = []
        with without_autocast(saved[0].device):
            for i, each in enumerate(as_projections(saved[first:last], ctx.scalings)):
                projection = each.to(kept.computed_dtype)
                sums = GradientSums(projection, wanted[4 * i : 4 * i + 4])
                if (gy := gys[i]) is not None:
                    if x_NI is None and sums.need_input:
                        x_NI = kept.remake(saved)
                    gy_NO = gy.reshape(-1, gy.shape[-1])
                    gx_NI, gh_RN = input_gradient(gy_NO, projection, gx_NI, wanted=wants_x)
                    sums.add(gy_NO, x_NI, saved[last + i], gh_RN)
                gradients += sums.sums
        return kept.gradient(gx_NI), None, None, *gradients
