"""Gated feed-forward layers, down(act(gate(x)) * up(x)), whose product inside is made again."""

# N rows (tokens), H hidden, I intermediate, R rank

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.fused.lora import (
    GradientSums,
    Projection,
    apply_projection,
    as_projections,
    input_gradient,
    keep_input,
)
from luthier.fused.norm import NormOrigin, norm_origin, product_blocks, row_blocks


class Activation(NamedTuple):
    """An activation function and its gradient."""

    apply: Callable[[Tensor], Tensor]  # x -> act(x)
    backward: Callable[..., Tensor]
    """(gradient of act(x), x) -> gradient of x, written to `grad_input`."""


ACTIVATIONS = {
    "silu": Activation(torch.nn.functional.silu, torch.ops.aten.silu_backward.grad_input),
    "gelu": Activation(torch.nn.functional.gelu, torch.ops.aten.gelu_backward.grad_input),
    "gelu_tanh": Activation(
        partial(torch.nn.functional.gelu, approximate="tanh"),
        partial(torch.ops.aten.gelu_backward.grad_input, approximate="tanh"),
    ),
}


def gate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up, both (..., I) and kept for the backward pass (Shazeer 2020, equation 6)."""
    result: Tensor = _Gate.apply(gate, up, activation)  # type: ignore[no-untyped-call]
    return result


def gate_forward(
    gate_NI: Tensor, up_NI: Tensor, activation: Activation, act_NI: Tensor | None = None
) -> Tensor:
    """act(gate) * up, (N, I), outside of any graph, written to `act_NI` if given."""
    if act_NI is None:
        act_NI = torch.empty_like(up_NI, memory_format=torch.contiguous_format)
    for rows in row_blocks(act_NI):
        torch.mul(activation.apply(gate_NI[rows]), up_NI[rows], out=act_NI[rows])
    return act_NI


def gate_backward(
    gact_NI: Tensor,
    gate_NI: Tensor,
    up_NI: Tensor,
    activation: Activation,
    act_NI: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; the product is written again to `act_NI` if somebody needs it."""
    ggate_NI = torch.empty_like(gact_NI)
    gup_NI = torch.empty_like(gact_NI)
    for rows in row_blocks(gact_NI):
        gate_BI, up_BI, gact_BI = gate_NI[rows], up_NI[rows], gact_NI[rows]
        a_BI = activation.apply(gate_BI)
        if act_NI is not None:
            torch.mul(a_BI, up_BI, out=act_NI[rows])
        torch.mul(gact_BI, a_BI, out=gup_NI[rows])
        torch.mul(gact_BI, up_BI, out=a_BI)
        activation.backward(a_BI, gate_BI, grad_input=ggate_NI[rows])
    return ggate_NI, gup_NI


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        act = torch.empty_like(up, memory_format=torch.contiguous_format)
        act_NI, gate_NI, up_NI = (each.reshape(-1, up.shape[-1]) for each in (act, gate, up))
        gate_forward(gate_NI, up_NI, activation, act_NI)
        return act

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gact: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        gact_NI, gate_NI, up_NI = (each.reshape(-1, up.shape[-1]) for each in (gact, gate, up))
        ggate_NI, gup_NI = gate_backward(gact_NI, gate_NI, up_NI, ctx.activation)
        return ggate_NI.view(gate.shape), gup_NI.view(up.shape), None


def gated_mlp(
    x: Tensor, gate: Projection, up: Projection, down: Projection, activation: Activation
) -> Tensor:
    """down(act(gate(x)) * up(x)), (..., H) to (..., H), Shazeer 2020, equation 6.

    Kept for the backward pass: the outputs of gate and up, not their product, which is made again;
    of `x` what `lora_linear` keeps. Dtypes as there.
    """
    tensors = (*gate.tensors, *up.tensors, *down.tensors)
    scalings = (gate.scaling, up.scaling, down.scaling)
    y: Tensor = _GatedMlp.apply(x, norm_origin(x), activation, scalings, *tensors)  # type: ignore[no-untyped-call]
    return y


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        origin: NormOrigin | None,
        activation: Activation,
        scalings: tuple[float, ...],
        *tensors: Tensor | None,
    ) -> Tensor:
        kept, x_NH, saved = keep_input(x, origin)
        gate, up, down = (
            each.to(kept.computed_dtype) for each in as_projections(tensors, scalings)
        )
        gate_NI, hgate_RN = apply_projection(x_NH, gate)
        up_NI, hup_RN = apply_projection(x_NH, up)
        y = up_NI.new_empty((*x.shape[:-1], down.weight.shape[0]))
        y_NH = y.view(-1, y.shape[-1])
        hdown_RBs = []
        for rows in product_blocks(up_NI):
            act_BI = gate_forward(gate_NI[rows], up_NI[rows], activation)
            hdown_RBs.append(apply_projection(act_BI, down, y_NH[rows])[1])
        ctx.save_for_backward(*saved, *tensors, gate_NI, up_NI, hgate_RN, hup_RN, *hdown_RBs)
        ctx.kept, ctx.activation, ctx.scalings = kept, activation, scalings
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        kept, saved = ctx.kept, ctx.saved_tensors
        wants_x, wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        first = kept.num_tensors
        gate_NI, up_NI, hgate_RN, hup_RN, *hdown_RBs = saved[first + 12 :]
        gate, up, down = (
            each.to(kept.computed_dtype)
            for each in as_projections(saved[first : first + 12], ctx.scalings)
        )
        of_gate, of_up, of_down = (
            GradientSums(each, wanted[4 * i : 4 * i + 4]) for i, each in enumerate((gate, up, down))
        )
        gy_NH = gy.reshape(-1, gy.shape[-1])
        x_NH = kept.remake(saved) if of_gate.need_input or of_up.need_input else None
        gx_NH = gy_NH.new_empty((len(gy_NH), gate.weight.shape[1])) if wants_x else None
        with torch.autocast(gy.device.type, enabled=False):
            for rows, hdown_RB in zip(product_blocks(gy_NH), hdown_RBs, strict=True):
                gy_BH, x_BH = gy_NH[rows], None if x_NH is None else x_NH[rows]
                gact_BI, ghdown_RB = input_gradient(gy_BH, down)
                assert gact_BI is not None
                act_BI = torch.empty_like(gact_BI) if of_down.need_input else None
                ggate_BI, gup_BI = gate_backward(
                    gact_BI, gate_NI[rows], up_NI[rows], ctx.activation, act_BI
                )
                of_down.add(gy_BH, act_BI, hdown_RB, ghdown_RB)
                out_BH = None if gx_NH is None else gx_NH[rows]
                gx_BH, ghgate_RB = input_gradient(ggate_BI, gate, wanted=wants_x, out_NI=out_BH)
                of_gate.add(ggate_BI, x_BH, _columns(hgate_RN, rows), ghgate_RB)
                _, ghup_RB = input_gradient(gup_BI, up, gx_BH, wanted=wants_x)
                of_up.add(gup_BI, x_BH, _columns(hup_RN, rows), ghup_RB)
        return kept.gradient(gx_NH), None, None, None, *of_gate.sums, *of_up.sums, *of_down.sums


def _columns(h_RN: Tensor | None, columns: slice) -> Tensor | None:
    return None if h_RN is None else h_RN[:, columns]
