"""Head, softmax and loss in chunks: the (reads x vocabulary) matrix of logits never exists."""

# N reads, n reads of a chunk, V vocabulary, H hidden

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.kernels.head_chunks import Figures, Head, Settings, Wants, read_chunks


class Nll(NamedTuple):
    """Sums over reads.

    Attributes:
        total: scalar with gradient, the sum of the negative log-likelihoods; float32.
        correct: int64 scalar, how many targets were the likeliest token; None if not asked for.
        entropy: scalar without gradient, in nats; None if not asked for.
    """

    total: Tensor
    correct: Tensor | None
    entropy: Tensor | None

    @classmethod
    def sum_of(cls, figures: Figures) -> Nll:
        """The sums of what is told of each read."""
        nll_N, correct_N, entropy_N = figures
        return cls(
            nll_N.sum(),
            None if correct_N is None else correct_N.sum(),
            None if entropy_N is None else entropy_N.sum(),
        )


class Logps(NamedTuple):
    """Figures of each read.

    Attributes:
        logps_N: (N,) with gradient, the log-probability of each target (its mean over the smoothed
            target distribution where labels are smoothed); float32.
        correct: (N,) bool, whether the target was the likeliest token; None if not asked for.
        entropy: (N,) without gradient, in nats; None if not asked for.
    """

    logps_N: Tensor
    correct: Tensor | None
    entropy: Tensor | None


def linear_nll(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    chunk_bytes: int | None = None,
    with_correct: bool = False,
    with_entropy: bool = False,
) -> Nll:
    """The summed cross-entropy of a linear head, its gradients made in the forward pass.

    With x = scale * (weight h + bias), y = softcap * tanh(x / softcap) (Gemma 2, section 2; y = x
    without a softcap) and p = softmax(y), a read of target t costs

        nll = -(1 - epsilon) log p_t - epsilon / V * sum_v log p_v

    (epsilon: label smoothing, Szegedy et al. 2015, section 7), and its gradient is

        d nll / d y_v = p_v - (1 - epsilon) [v = t] - epsilon / V
        d y / d x     = 1 - (y / softcap)^2.

    Since the sum's own gradient is one number, those of hidden, weight and bias are made chunk by
    chunk while the probabilities are at hand, and only multiplied by it in the backward pass (the
    idea is that of Liger Kernel, Hsu et al. 2024). In float16 small probabilities would be lost
    without the loss scale, which comes with the backward pass; there the chunks are made anew.

    Products are made in the dtype of `hidden_NH`, or in autocast's; everything else in float32
    (float64 where hidden is). Gradients of weight and bias add up over chunks in float32.

    Args:
        hidden_NH: (N, H); N may be 0, all gradients are then zero.
        weight_VH: (V, H), cast once to the dtype of the products.
        targets_N: (N,) int64.
        bias: (V,).
        scale: multiplies the logits, before the soft cap.
        softcap: bounds the logits.
        label_smoothing: epsilon above.
        chunk_bytes: of a chunk's logits and their copies; None takes `CHUNK_BYTES`.
        with_correct: counts the targets that were the likeliest token.
        with_entropy: sums the entropies of the predicted distributions.
    """
    settings = Settings(scale, softcap, label_smoothing, chunk_bytes, with_correct, with_entropy)
    dtype, wants = _dtype_of_products(hidden_NH), _wants(hidden_NH, weight_VH, bias)
    inputs = (hidden_NH, weight_VH, bias, targets_N, dtype, settings, wants)
    if dtype is torch.float16 and any(wants):
        return Nll.sum_of(Figures(*_RecomputedNll.apply(*inputs)))  # type: ignore[no-untyped-call]
    return Nll(*_FusedNll.apply(*inputs))  # type: ignore[no-untyped-call]


def linear_logps(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    chunk_bytes: int | None = None,
    with_correct: bool = False,
    with_entropy: bool = False,
) -> Logps:
    """The log-probability of each target under a linear head; any gradient may come back.

    Formulas, dtypes and arguments are those of `linear_nll`; with label smoothing each figure is
    minus what the read costs there. The logits of each chunk are made again in the backward pass.
    """
    settings = Settings(scale, softcap, label_smoothing, chunk_bytes, with_correct, with_entropy)
    dtype, wants = _dtype_of_products(hidden_NH), _wants(hidden_NH, weight_VH, bias)
    nll_N, correct_N, entropy_N = _RecomputedNll.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, bias, targets_N, dtype, settings, wants
    )
    return Logps(-nll_N, correct_N, entropy_N)


def _dtype_of_products(hidden_NH: Tensor) -> torch.dtype:
    device = hidden_NH.device.type
    if torch.is_autocast_enabled(device) and hidden_NH.dtype is not torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_NH.dtype


def _wants(*inputs: Tensor | None) -> Wants:
    return Wants(
        *(torch.is_grad_enabled() and each is not None and each.requires_grad for each in inputs)
    )


class _FusedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        dtype: torch.dtype,
        settings: Settings,
        wants: Wants,
    ) -> tuple[Tensor | None, ...]:
        head = Head(weight_VH, bias_V, dtype)
        figures, gradients = read_chunks(hidden_NH, head, targets_N, settings, wants)
        ctx.save_for_backward(*gradients)
        total, *others = Nll.sum_of(figures)
        ctx.mark_non_differentiable(*(each for each in others if each is not None))
        return total, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # in place: the gradient of a trained head is as large as the head. A second backward pass
        # through the same graph is refused by autograd, which sees that they were changed.
        gradients = ctx.saved_tensors
        return *(None if each is None else each.mul_(upstream) for each in gradients), *[None] * 4


class _RecomputedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        dtype: torch.dtype,
        settings: Settings,
        wants: Wants,
    ) -> tuple[Tensor | None, ...]:
        head = Head(weight_VH, bias_V, dtype)
        figures, _ = read_chunks(hidden_NH, head, targets_N, settings, Wants())
        if any(wants):
            ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N)
            ctx.options = (dtype, settings, wants)
        ctx.mark_non_differentiable(*(each for each in figures[1:] if each is not None))
        return tuple(figures)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N = ctx.saved_tensors
        dtype, settings, wants = ctx.options
        head = Head(weight_VH, bias_V, dtype)
        settings = replace(settings, with_correct=False, with_entropy=False)
        _, gradients = read_chunks(hidden_NH, head, targets_N, settings, wants, upstream_N)
        return *gradients, *[None] * 4
