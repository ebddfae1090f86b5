"""Head, softmax and loss in chunks: the (reads x vocabulary) matrix of logits never exists."""

# N reads, n reads of a chunk, V vocabulary, H hidden

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 128 * 2**20}
"""Bytes of a chunk's logits and their copies, by device type.

Every chunk streams the whole weight through the processor twice, so a chunk needs enough rows to
be worth it; what the softmax adds hardly depends on it. One core of an EPYC with AVX2, head and
loss against the two products in one piece: V = 49,152, H = 576: 1.35 times at 60 rows, 1.07 at
225 and more; V = 151,936, H = 896: 1.17 at 110 rows, 1.05 at 220, which are 128 MiB.
"""

CHUNK_BYTES_OF_OTHERS = 256 * 2**20
"""The same for devices that are not in the table; reckoned, not measured.

An accelerator needs some 300 operations for each byte it reads to be busy; with a vocabulary of
151,936 in half precision this is 294 rows, and 294 operations for each byte of the weight.
"""


@dataclass(frozen=True)
class Settings:
    """How logits become figures."""

    scale: float = 1.0  # multiplies the head's products
    softcap: float | None = None
    """Then bounds them, y = softcap * tanh(x / softcap); None for no bound."""
    label_smoothing: float = 0.0
    """Share of the target distribution that is spread over the vocabulary."""
    chunk_bytes: int | None = None  # of a chunk's logits and their copies; None takes `CHUNK_BYTES`
    with_correct: bool = False  # whether the target was the likeliest token is told
    entropy_of: int = 0
    """Of how many of the likeliest tokens, taken as all there are, entropies are told."""
    against: Any = None
    """The distribution that divergences are told from; `read_products` alone tells them."""

    def rows_of_chunk(self, num_reads: int, bytes_of_row: int, device: torch.device) -> int:
        """Rows of equal chunks within the byte budget; at least one where there are any."""
        budget = self.chunk_bytes or CHUNK_BYTES.get(device.type, CHUNK_BYTES_OF_OTHERS)
        num_chunks = -(-num_reads // max(budget // bytes_of_row, 1))
        return -(-num_reads // max(num_chunks, 1))


PLAIN = Settings()


class Figures(NamedTuple):
    """What is told of each read."""

    nll_N: Tensor  # (N,) negative log-likelihoods; float32, or float64 where the logits are
    correct_N: Tensor | None  # (N,) bool; None if not asked for
    entropy_N: Tensor | None  # (N,), in nats; None if not asked for
    divergence_N: Tensor | None = None  # (N,) with gradient, in nats; None if not asked for


class Nll(NamedTuple):
    """Sums over reads."""

    total: Tensor  # scalar with gradient, the sum of the negative log-likelihoods; float32
    correct: Tensor | None
    """int64 scalar, how many targets were the likeliest token; None if not asked for."""
    entropy: Tensor | None  # scalar without gradient, in nats; None if not asked for

    @classmethod
    def sum_of(cls, figures: Figures) -> Nll:
        """The sums of what is told of each read."""
        nll_N, correct_N, entropy_N, _ = figures
        return cls(
            nll_N.sum(),
            None if correct_N is None else correct_N.sum(),
            None if entropy_N is None else entropy_N.sum(),
        )


class Logps(NamedTuple):
    """Figures of each read."""

    logps_N: Tensor
    """(N,) with gradient, the log-probability of each target (its mean over the smoothed target
    distribution where labels are smoothed); float32."""
    correct: Tensor | None
    """(N,) bool, whether the target was the likeliest token; None if not asked for."""
    entropy: Tensor | None  # (N,) without gradient, in nats; None if not asked for
    divergence: Tensor | None = None
    """(N,) with gradient, KL(q || p) from the distribution q that is asked against, in nats."""


def linear_nll(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    settings: Settings = PLAIN,
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
        bias_V: (V,).
        settings: how logits become figures.
    """
    inputs = _inputs(hidden_NH, weight_VH, bias_V, targets_N, settings)
    if inputs[4] is torch.float16 and any(inputs[6]):
        return Nll.sum_of(Figures(*_RecomputedNll.apply(*inputs)))  # type: ignore[no-untyped-call]
    return Nll(*_FusedNll.apply(*inputs))  # type: ignore[no-untyped-call]


def linear_logps(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    settings: Settings = PLAIN,
) -> Logps:
    """The log-probability of each target under a linear head; any gradient may come back.

    Formulas, dtypes and arguments are those of `linear_nll`; with label smoothing each figure is
    minus what the read costs there. The logits of each chunk are made again in the backward pass.
    """
    inputs = _inputs(hidden_NH, weight_VH, bias_V, targets_N, settings)
    nll_N, correct_N, entropy_N, _ = _RecomputedNll.apply(*inputs)  # type: ignore[no-untyped-call]
    return Logps(-nll_N, correct_N, entropy_N)


def read_products(
    products_NV: Tensor, targets_N: Tensor, settings: Settings, against_NV: Tensor | None = None
) -> Figures:
    """The same figures of a head's products that exist, by plain operations with a gradient.

    With log-probabilities `against_NV`, without gradient, divergences from them too.
    """
    logps_NV = log_probabilities(products_NV, settings)
    with torch.no_grad():
        correct_N = logps_NV.argmax(1) == targets_N if settings.with_correct else None
        entropy_N = _entropy(logps_NV, settings) if settings.entropy_of else None
    nll_N = _nll(logps_NV, targets_N, settings)
    if against_NV is None:
        return Figures(nll_N, correct_N, entropy_N)
    least = torch.finfo(logps_NV.dtype).min  # a token that both rule out (-inf) adds 0
    apart_NV = against_NV.clamp(min=least) - logps_NV.clamp(min=least)
    return Figures(nll_N, correct_N, entropy_N, (against_NV.exp() * apart_NV).sum(1))


def log_probabilities(products_NV: Tensor, settings: Settings) -> Tensor:
    """(N, V) in float32 or wider, of a head's products."""
    exact = torch.promote_types(products_NV.dtype, torch.float32)
    logits_NV = products_NV.to(exact) * settings.scale
    if settings.softcap is not None:
        logits_NV = torch.tanh(logits_NV / settings.softcap) * settings.softcap
    return logits_NV.log_softmax(1)


def _inputs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    settings: Settings,
) -> tuple[Any, ...]:
    """What both functions take: the tensors, dtype of products, settings, gradients wanted."""
    dtype, device = hidden_NH.dtype, hidden_NH.device.type
    if torch.is_autocast_enabled(device) and dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(device)
    wants = tuple(
        torch.is_grad_enabled() and each is not None and each.requires_grad
        for each in (hidden_NH, weight_VH, bias_V)
    )
    return hidden_NH, weight_VH, bias_V, targets_N, dtype, settings, wants


class _FusedNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, ...]:
        figures, gradients = _read_chunks(*inputs)
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
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N, dtype, settings, wants = inputs
        tensors = (hidden_NH, weight_VH, bias_V, targets_N)
        figures, _ = _read_chunks(*tensors, dtype, settings, (False, False, False))
        if any(wants):
            ctx.save_for_backward(*tensors)
            ctx.options = {"dtype": dtype, "settings": settings, "wants": wants}
        ctx.mark_non_differentiable(*(each for each in figures[1:] if each is not None))
        return tuple(figures)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        settings = replace(ctx.options["settings"], with_correct=False, entropy_of=0)
        options = ctx.options | {"settings": settings, "upstream_N": upstream_N}
        _, gradients = _read_chunks(*ctx.saved_tensors, **options)
        return *gradients, *[None] * 4


@torch.no_grad()
def _read_chunks(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    dtype: torch.dtype,
    settings: Settings,
    wants: tuple[bool, bool, bool],
    upstream_N: Tensor | None = None,
) -> tuple[Figures, tuple[Tensor | None, ...]]:
    """Figures of all reads, and the gradients wanted, in buffers that all chunks share.

    The products are made in `dtype`, everything else in float32 or wider; gradients come in the
    dtypes of hidden, weight and bias. `upstream_N` weighs each read in them; None for ones.
    """
    inputs = (hidden_NH, weight_VH, bias_V)
    exact = torch.promote_types(dtype, torch.float32)
    num_reads, num_tokens = hidden_NH.shape[0], weight_VH.shape[0]
    weight_VH = weight_VH.to(dtype)
    bias_V = None if bias_V is None else bias_V.to(dtype)
    softcap, share = settings.softcap, settings.label_smoothing
    keeps_tanh = softcap is not None and any(wants)
    copies = (dtype is not exact) + keeps_tanh
    rows = settings.rows_of_chunk(
        num_reads, num_tokens * (dtype.itemsize + copies * exact.itemsize), hidden_NH.device
    )
    # half-precision products are widened into a second buffer; others become log-probabilities,
    # probabilities and gradients where they are
    products = hidden_NH.new_empty((rows, num_tokens), dtype=dtype)
    logits = products if dtype is exact else torch.empty_like(products, dtype=exact)
    tanh = torch.empty_like(logits) if keeps_tanh else None

    nll_N = hidden_NH.new_empty(num_reads, dtype=exact)
    correct_N = torch.empty_like(nll_N, dtype=torch.bool) if settings.with_correct else None
    entropy_N = torch.empty_like(nll_N) if settings.entropy_of else None
    wants_hidden, wants_weight, wants_bias = wants
    ghidden_NH = torch.empty_like(hidden_NH, dtype=dtype) if wants_hidden else None
    gweight_VH = torch.zeros_like(weight_VH, dtype=exact) if wants_weight else None
    gbias_V = weight_VH.new_zeros(num_tokens, dtype=exact) if wants_bias else None
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for start in range(0, num_reads, max(rows, 1)):
            chunk = slice(start, min(start + rows, num_reads))
            size = chunk.stop - start
            products_nV, logits_nV = products[:size], logits[:size]
            hidden_nH, targets_n = hidden_NH[chunk].to(dtype), targets_N[chunk]
            if bias_V is None:
                torch.mm(hidden_nH, weight_VH.t(), out=products_nV)
            else:
                torch.addmm(bias_V, hidden_nH, weight_VH.t(), out=products_nV)
            if logits_nV is not products_nV:
                logits_nV.copy_(products_nV)
            if settings.scale != 1.0:
                logits_nV.mul_(settings.scale)
            if softcap is not None:
                logits_nV.div_(softcap).tanh_()
                if tanh is not None:
                    tanh[:size].copy_(logits_nV)
                logits_nV.mul_(softcap)
            logps_nV = torch.log_softmax(logits_nV, 1, out=logits_nV)
            nll_N[chunk] = _nll(logps_nV, targets_n, settings)
            if correct_N is not None:
                correct_N[chunk] = logps_nV.argmax(1) == targets_n
            if entropy_N is not None:
                entropy_N[chunk] = _entropy(logps_nV, settings)
            if not any(wants):
                continue

            gradient_nV = logps_nV.exp_()
            if share:
                gradient_nV.sub_(share / num_tokens)
            at_target = gradient_nV.new_full((size, 1), share - 1)
            gradient_nV.scatter_add_(1, targets_n.unsqueeze(1), at_target)
            if tanh is not None:
                gradient_nV.addcmul_(gradient_nV, tanh[:size].square_(), value=-1)
            if upstream_N is not None:
                gradient_nV.mul_((upstream_N[chunk] * settings.scale).unsqueeze(1))
            elif settings.scale != 1.0:
                gradient_nV.mul_(settings.scale)
            if gbias_V is not None:
                gbias_V += gradient_nV.sum(0)
            if dtype is not exact:
                gradient_nV = products_nV.copy_(gradient_nV)
            if ghidden_NH is not None:
                torch.mm(gradient_nV, weight_VH, out=ghidden_NH[chunk])
            if gweight_VH is not None and dtype is exact:
                gweight_VH.addmm_(gradient_nV.t(), hidden_nH)
            elif gweight_VH is not None:
                gweight_VH += gradient_nV.t() @ hidden_nH
    made = (ghidden_NH, gweight_VH, gbias_V)
    return Figures(nll_N, correct_N, entropy_N), tuple(
        None if gradient is None or input is None else gradient.to(input.dtype)
        for gradient, input in zip(made, inputs, strict=True)
    )


def _nll(logps_nV: Tensor, targets_n: Tensor, settings: Settings) -> Tensor:
    nll_n = -logps_nV.gather(1, targets_n.unsqueeze(1)).squeeze(1)
    if not settings.label_smoothing:
        return nll_n
    share = settings.label_smoothing
    return (1 - share) * nll_n - share * logps_nV.mean(1)


def _entropy(logps_nV: Tensor, settings: Settings) -> Tensor:
    likeliest_nk = logps_nV.topk(min(settings.entropy_of, logps_nV.shape[1]), 1).values
    # a token that is ruled out (-inf) adds 0, not 0 * inf
    finite_nk = likeliest_nk.log_softmax(1).clamp_(min=torch.finfo(logps_nV.dtype).min)
    return -finite_nk.exp().mul_(finite_nk).sum(1)
