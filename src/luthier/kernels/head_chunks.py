"""What a loss needs of a linear head, made from a few logits at a time."""

# N reads, n reads of a chunk, V vocabulary, H hidden

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

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
    """How logits become figures.

    Attributes:
        scale: multiplies the head's products.
        softcap: then bounds them, y = softcap * tanh(x / softcap); None for no bound.
        label_smoothing: share of the target distribution that is spread over the vocabulary.
        chunk_bytes: of a chunk's logits and their copies; None takes `CHUNK_BYTES`.
        with_correct: whether the target was the likeliest token is told.
        with_entropy: the entropies of the predicted distributions are told.
    """

    scale: float = 1.0
    softcap: float | None = None
    label_smoothing: float = 0.0
    chunk_bytes: int | None = None
    with_correct: bool = False
    with_entropy: bool = False

    def rows_of_chunk(self, num_reads: int, bytes_of_row: int, device: torch.device) -> int:
        """Rows of equal chunks within the byte budget; at least one where there are any."""
        budget = self.chunk_bytes or CHUNK_BYTES.get(device.type, CHUNK_BYTES_OF_OTHERS)
        num_chunks = -(-num_reads // max(budget // bytes_of_row, 1))
        return -(-num_reads // max(num_chunks, 1))


class Wants(NamedTuple):
    """Of which inputs a gradient is needed."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False


class Figures(NamedTuple):
    """What is told of each read.

    Attributes:
        nll_N: (N,) negative log-likelihoods; float32, or float64 where the logits are.
        correct_N: (N,) bool; None if not asked for.
        entropy_N: (N,), in nats; None if not asked for.
    """

    nll_N: Tensor
    correct_N: Tensor | None
    entropy_N: Tensor | None


class Head(NamedTuple):
    """A linear head as a loss sees it: weight (V, H), bias (V,) or None, dtype of products."""

    weight_VH: Tensor
    bias_V: Tensor | None
    dtype: torch.dtype

    @property
    def exact(self) -> torch.dtype:
        """The dtype of everything but the products."""
        return torch.promote_types(self.dtype, torch.float32)


class Gradients:
    """Of hidden, weight and bias where wanted, added up chunk by chunk, in float32 over chunks."""

    def __init__(self, hidden_NH: Tensor, head: Head, wants: Wants) -> None:
        weight_VH = head.weight_VH
        self.hidden = torch.empty_like(hidden_NH, dtype=head.dtype) if wants.hidden else None
        self.weight = torch.zeros_like(weight_VH, dtype=head.exact) if wants.weight else None
        self.bias = (
            weight_VH.new_zeros(weight_VH.shape[0], dtype=head.exact) if wants.bias else None
        )

    def add(self, chunk: slice, hidden_nH: Tensor, weight_VH: Tensor, products_nV: Tensor) -> None:
        """Adds a chunk, of which `products_nV` is the gradient of the head's products."""
        if self.hidden is not None:
            torch.mm(products_nV, weight_VH, out=self.hidden[chunk])
        if self.weight is not None and self.weight.dtype is products_nV.dtype:
            self.weight.addmm_(products_nV.t(), hidden_nH)
        elif self.weight is not None:
            self.weight += products_nV.t() @ hidden_nH


@torch.no_grad()
def read_chunks(
    hidden_NH: Tensor,
    head: Head,
    targets_N: Tensor,
    settings: Settings,
    wants: Wants,
    upstream_N: Tensor | None = None,
) -> tuple[Figures, tuple[Tensor | None, ...]]:
    """Figures of all reads, and the gradients wanted, in buffers that all chunks share.

    Args:
        hidden_NH: (N, H).
        head: its weight is cast once.
        targets_N: (N,) int64.
        settings: how logits become figures.
        wants: of which inputs the gradient of the negative log-likelihood is made.
        upstream_N: (N,), weighs each read in the gradients; None for ones.

    Returns:
        The figures, and gradients of hidden, weight and bias in the dtypes of these.
    """
    dtype, exact = head.dtype, head.exact
    num_reads, num_tokens = hidden_NH.shape[0], head.weight_VH.shape[0]
    weight_VH = head.weight_VH.to(dtype)
    bias_V = None if head.bias_V is None else head.bias_V.to(dtype)
    keeps_tanh = settings.softcap is not None and any(wants)
    copies = (dtype is not exact) + keeps_tanh + settings.with_entropy
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
    entropy_N = torch.empty_like(nll_N) if settings.with_entropy else None
    gradients = Gradients(hidden_NH, head, wants)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for start in range(0, num_reads, max(rows, 1)):
            chunk = slice(start, min(start + rows, num_reads))
            size = chunk.stop - start
            products_nV, logits_nV = products[:size], logits[:size]
            tanh_nV = None if tanh is None else tanh[:size]
            hidden_nH, targets_n = hidden_NH[chunk].to(dtype), targets_N[chunk]
            if bias_V is None:
                torch.mm(hidden_nH, weight_VH.t(), out=products_nV)
            else:
                torch.addmm(bias_V, hidden_nH, weight_VH.t(), out=products_nV)
            if logits_nV is not products_nV:
                logits_nV.copy_(products_nV)
            logps_nV = _make_logps(logits_nV, tanh_nV, settings)
            nll_N[chunk] = _nll(logps_nV, targets_n, settings)
            if correct_N is not None:
                correct_N[chunk] = logps_nV.argmax(1) == targets_n
            if entropy_N is not None:
                entropy_N[chunk] = _entropy(logps_nV)
            if any(wants):
                upstream_n = None if upstream_N is None else upstream_N[chunk]
                gradient_nV = _make_gradient(logps_nV, targets_n, tanh_nV, settings, upstream_n)
                if gradients.bias is not None:
                    gradients.bias += gradient_nV.sum(0)
                if gradient_nV.dtype is not dtype:
                    gradient_nV = products_nV.copy_(gradient_nV)
                gradients.add(chunk, hidden_nH, weight_VH, gradient_nV)
    inputs = (hidden_NH, head.weight_VH, head.bias_V)
    made = (gradients.hidden, gradients.weight, gradients.bias)
    return Figures(nll_N, correct_N, entropy_N), tuple(
        None if gradient is None or input is None else gradient.to(input.dtype)
        for gradient, input in zip(made, inputs, strict=True)
    )


def read_products(products_NV: Tensor, targets_N: Tensor, settings: Settings) -> Figures:
    """The same figures of a head's products that exist, by plain operations with a gradient."""
    exact = torch.promote_types(products_NV.dtype, torch.float32)
    logits_NV = products_NV.to(exact) * settings.scale
    if settings.softcap is not None:
        logits_NV = torch.tanh(logits_NV / settings.softcap) * settings.softcap
    logps_NV = logits_NV.log_softmax(1)
    with torch.no_grad():
        correct_N = logps_NV.argmax(1) == targets_N if settings.with_correct else None
        entropy_N = _entropy(logps_NV.clone()) if settings.with_entropy else None
    return Figures(_nll(logps_NV, targets_N, settings), correct_N, entropy_N)


def _make_logps(logits_nV: Tensor, tanh_nV: Tensor | None, settings: Settings) -> Tensor:
    """Log-probabilities in the place of the head's products."""
    if settings.scale != 1.0:
        logits_nV.mul_(settings.scale)
    if settings.softcap is not None:
        logits_nV.div_(settings.softcap).tanh_()
        if tanh_nV is not None:
            tanh_nV.copy_(logits_nV)
        logits_nV.mul_(settings.softcap)
    return torch.log_softmax(logits_nV, 1, out=logits_nV)


def _nll(logps_nV: Tensor, targets_n: Tensor, settings: Settings) -> Tensor:
    nll_n = -logps_nV.gather(1, targets_n.unsqueeze(1)).squeeze(1)
    if not settings.label_smoothing:
        return nll_n
    share = settings.label_smoothing
    return (1 - share) * nll_n - share * logps_nV.mean(1)


def _entropy(logps_nV: Tensor) -> Tensor:
    # a token that is ruled out (-inf) adds 0, not 0 * inf
    finite_nV = logps_nV.clamp_(min=torch.finfo(logps_nV.dtype).min)
    return -finite_nV.exp().mul_(finite_nV).sum(1)


def _make_gradient(
    logps_nV: Tensor,
    targets_n: Tensor,
    tanh_nV: Tensor | None,
    settings: Settings,
    upstream_n: Tensor | None,
) -> Tensor:
    """The gradient of the head's products in the place of the log-probabilities."""
    gradient_nV, share = logps_nV.exp_(), settings.label_smoothing
    if share:
        gradient_nV.sub_(share / gradient_nV.shape[1])
    at_target = gradient_nV.new_full((len(targets_n), 1), share - 1)
    gradient_nV.scatter_add_(1, targets_n.unsqueeze(1), at_target)
    if tanh_nV is not None:
        gradient_nV.addcmul_(gradient_nV, tanh_nV.square_(), value=-1)
    if upstream_n is not None:
        gradient_nV.mul_((upstream_n * settings.scale).unsqueeze(1))
    elif settings.scale != 1.0:
        gradient_nV.mul_(settings.scale)
    return gradient_nV
