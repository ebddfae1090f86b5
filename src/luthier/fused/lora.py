"""Linear layers with low-rank updates (LoRA): one autograd function for all that read one input."""

# N rows (tokens), I inputs, O outputs, R rank, P projections

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.fused.norm import NormFormula, NormOrigin, norm_origin


class Projection(NamedTuple):
    """y = x W^T + bias + scaling (x A^T) B^T (Hu et al. 2021, equation 3)."""

    weight: Tensor  # (O, I)
    bias: Tensor | None = None  # (O,) or None
    a: Tensor | None = None
    """(R, I) or None, of one dtype with `b`, which may be wider than that of `weight`."""
    b: Tensor | None = None  # (O, R) or None
    scaling: float = 1.0  # alpha / R in the paper

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Weight, bias, a, b."""
        return self[:4]

    def to(self, dtype: torch.dtype | None) -> Projection:
        """The same in one dtype; None leaves it as it is."""
        if dtype is None:
            return self
        return as_projections(
            [None if each is None else each.to(dtype) for each in self.tensors], (self.scaling,)
        )[0]


# The low-rank products are made lying, (R, N) in place of (N, R): on a CPU the standing forms take
# up to seven times as long (EPYC with AVX2, N = 1,536, O = 1,536, R = 8: G^T H 7.8 ms, H^T G 1.0).


def apply_projection(
    x_NI: Tensor, projection: Projection, out_NO: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The output, written to `out_NO` if given, and A x^T, None without a low-rank part."""
    weight_OI, bias_O, a_RI, b_OR, scaling = projection
    weight_IO = weight_OI.t()
    if bias_O is None:
        y_NO = torch.mm(x_NI, weight_IO, out=out_NO)
    else:
        y_NO = torch.addmm(bias_O, x_NI, weight_IO, out=out_NO)
    if a_RI is None or b_OR is None:
        return y_NO, None
    h_RN = a_RI.mm(x_NI.to(a_RI.dtype).t())
    _add_product(y_NO, h_RN.t(), b_OR.t(), scaling)
    return y_NO, h_RN


def input_gradient(
    gy_NO: Tensor,
    projection: Projection,
    gx_NI: Tensor | None = None,
    *,
    wanted: bool = True,
    out_NI: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of the input, None where not wanted, and that of A x^T.

    It is added to `gx_NI`, in place, or begins anew, in `out_NI` if given.
    """
    weight_OI, _, a_RI, b_OR, scaling = projection
    if wanted:
        if gx_NI is None:
            gx_NI = torch.mm(gy_NO, weight_OI, out=out_NI)
        else:
            gx_NI.addmm_(gy_NO, weight_OI)
    if a_RI is None or b_OR is None:
        return gx_NI, None
    gh_RN = b_OR.t().mm(gy_NO.to(b_OR.dtype).t()).mul_(scaling)
    if wanted and gx_NI is not None:
        _add_product(gx_NI, gh_RN.t(), a_RI, 1.0)
    return gx_NI, gh_RN


class GradientSums:
    """Sums, over blocks of rows, of the gradients wanted of weight, bias, a, b."""

    def __init__(self, projection: Projection, wanted: Sequence[bool]) -> None:
        self.projection = projection
        self.wanted = wanted
        self.sums: list[Tensor | None] = [None] * 4

    @property
    def need_input(self) -> bool:
        """Whether any of them is made of the projection's input."""
        return self.wanted[0] or self.wanted[2]

    def add(
        self, gy_NO: Tensor, x_NI: Tensor | None, h_RN: Tensor | None, gh_RN: Tensor | None
    ) -> None:
        """Adds what some rows contribute; `x_NI` is None where it is not needed."""
        wants_weight, wants_bias, wants_a, wants_b = self.wanted
        if wants_weight and x_NI is not None:
            self._add_product(0, gy_NO.t(), x_NI)
        if wants_bias:
            self._add(1, gy_NO.sum(0))
        if wants_a and gh_RN is not None and x_NI is not None:
            self._add_product(2, gh_RN, x_NI.to(gh_RN.dtype))
        if wants_b and h_RN is not None:
            gb_RO = h_RN.mm(gy_NO.to(h_RN.dtype)).mul_(self.projection.scaling)
            self._add(3, gb_RO.t())

    def _add_product(self, i: int, left: Tensor, right: Tensor) -> None:
        total = self.sums[i]
        if total is not None and total.dtype == left.dtype == _wide(left.dtype):
            total.addmm_(left, right)
        else:
            self._add(i, left.mm(right))

    def _add(self, i: int, part: Tensor) -> None:
        total = self.sums[i]
        self.sums[i] = part if total is None else total.to(_wide(part.dtype)).add_(part)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What torch's autocast computes products of `x` in; None where it leaves them alone."""
    if x.dtype is torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return None
    return torch.get_autocast_dtype(x.device.type)


def _add_product(y_NO: Tensor, left_NR: Tensor, right_RO: Tensor, scaling: float) -> None:
    if left_NR.dtype == y_NO.dtype:
        y_NO.addmm_(left_NR, right_RO, alpha=scaling)
    else:
        y_NO.add_(left_NR.mm(right_RO), alpha=scaling)


def as_projections(tensors: Sequence[Tensor | None], scalings: Sequence[float]) -> list[Projection]:
    """Projections from their tensors in a row, as an autograd function is given them."""
    projections = []
    for i, scaling in enumerate(scalings):
        weight, bias, a, b = tensors[4 * i : 4 * i + 4]
        assert weight is not None
        projections.append(Projection(weight, bias, a, b, scaling))
    return projections


class KeptInput(NamedTuple):
    """How to get an input back from the tensors that were kept of it."""

    shape: torch.Size  # as given
    dtype: torch.dtype  # as given
    computed_dtype: torch.dtype | None  # what products are made in under autocast; None without
    formula: NormFormula | None  # of the norm that made the input; None if another function did
    num_tensors: int  # how many tensors are kept

    def remake(self, tensors: Sequence[Tensor]) -> Tensor:
        """The (N, I) input in the dtype of the products."""
        if self.formula is None:
            return tensors[0]
        x_NI = NormOrigin(tensors[0], tensors[1], tensors[2], self.formula).remake()
        return x_NI if self.computed_dtype is None else x_NI.to(self.computed_dtype)

    def gradient(self, gx_NI: Tensor | None) -> Tensor | None:
        """A gradient of the products' input as one of the given input."""
        return None if gx_NI is None else gx_NI.to(self.dtype).view(self.shape)


def keep_input(
    x: Tensor, origin: NormOrigin | None
) -> tuple[KeptInput, Tensor, tuple[Tensor, ...]]:
    """How to get an input back, itself in the dtype of the products, and the tensors to save.

    `origin` is `norm_origin(x)`, asked before an autograd function took `x` over.
    """
    dtype = autocast_dtype(x)
    x_NI = x.reshape(-1, x.shape[-1])
    x_NI = x_NI if dtype is None else x_NI.to(dtype)
    formula = None if origin is None else origin.formula
    saved: tuple[Tensor, ...] = (x_NI,) if origin is None else origin[:3]
    return KeptInput(x.shape, x.dtype, dtype, formula, len(saved)), x_NI, saved


def lora_linear(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """P projections of one input (..., I), each (..., O).

    Kept for the backward pass: `x` once (not even that where `rms_norm` made it: it is made again)
    and A x^T of each. The gradient of `x` is one sum. Under autocast all products are made in its
    dtype. Otherwise the products with the weight are made in its dtype, which must be that of `x`,
    and the low-rank ones in theirs, their sum rounded to the former, as peft does. Gradients are
    made of those tensors that require one.
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
        with torch.autocast(saved[0].device.type, enabled=False):
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
