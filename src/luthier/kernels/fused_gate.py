"""act(gate) * up with both gradients in few passes, as in gated feed-forward layers."""

# N rows (tokens), I intermediate

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.kernels.row_blocks import row_blocks


class Activation(NamedTuple):
    """An activation function and its gradient.

    Attributes:
        apply: x -> act(x).
        backward: (gradient of act(x), x) -> gradient of x, written to `grad_input`.
    """

    apply: Callable[[Tensor], Tensor]
    backward: Callable[..., Tensor]


ACTIVATIONS = {
    "silu": Activation(torch.nn.functional.silu, torch.ops.aten.silu_backward.grad_input),
    "gelu": Activation(torch.nn.functional.gelu, torch.ops.aten.gelu_backward.grad_input),
    "gelu_tanh": Activation(
        partial(torch.nn.functional.gelu, approximate="tanh"),
        partial(torch.ops.aten.gelu_backward.grad_input, approximate="tanh"),
    ),
}


def gate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up (Shazeer 2020, equation 6); keeps its two arguments for the backward pass.

    Args:
        gate: (..., I).
        up: (..., I), of the same dtype.
        activation: one of `ACTIVATIONS`.
    """
    result: Tensor = _Gate.apply(gate, up, activation)  # type: ignore[no-untyped-call]
    return result


def gate_forward(gate_NI: Tensor, up_NI: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up, (N, I), outside of any graph."""
    act_NI = torch.empty_like(up_NI, memory_format=torch.contiguous_format)
    _write(act_NI, gate_NI, up_NI, activation)
    return act_NI


def gate_backward(
    gact_NI: Tensor,
    gate_NI: Tensor,
    up_NI: Tensor,
    activation: Activation,
    act_NI: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up.

    Args:
        gact_NI: gradient of the product.
        gate_NI: as in the forward pass.
        up_NI: as in the forward pass.
        activation: as in the forward pass.
        act_NI: where to write the product again, if somebody needs it.

    Returns:
        The gradient of the gate and that of up, (N, I).
    """
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
        _write(act_NI, gate_NI, up_NI, activation)
        return act

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gact: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        gact_NI, gate_NI, up_NI = (each.reshape(-1, up.shape[-1]) for each in (gact, gate, up))
        ggate_NI, gup_NI = gate_backward(gact_NI, gate_NI, up_NI, ctx.activation)
        return ggate_NI.view(gate.shape), gup_NI.view(up.shape), None


def _write(act_NI: Tensor, gate_NI: Tensor, up_NI: Tensor, activation: Activation) -> None:
    for rows in row_blocks(act_NI):
        torch.mul(activation.apply(gate_NI[rows]), up_NI[rows], out=act_NI[rows])
