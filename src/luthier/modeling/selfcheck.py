"""A probe at the start of a run: does a faster computation give what the plain one gives?"""

# N reads, P chosen parameters

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.modeling.dtypes import Autocast
from luthier.modeling.reads import Readable, read_logps
from luthier.modeling.sharded import full_numel, full_shape, gathering

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative difference of equal computations, by the dtype they are done in.

A sum in another order differs by a few units of the last place (2^-24, 2^-11, 2^-9), which layers
carry on; sequences that see each other differ by a tenth and more in the gradients of the layers
where they do. Seen on SmolLM2-135M: 1e-5 in float32 and 5e-2 in bfloat16.
"""

PROBED_NUMBERS = 2**24
"""Numbers of the gradients that are compared, at most; that is 64 MiB in float32."""

LARGEST_PROBED = 2**20
"""Numbers of the largest tensor among them; norms and adapters are smaller in every model."""

NEGLIGIBLE = 1e-3
"""The share of the largest gradient's norm below which a gradient is mostly rounding."""


@dataclass(frozen=True)
class Probe:
    """The log-probabilities of a few tokens, and gradients of their sum.

    Attributes:
        logps_N: float32, of every read, sequence by sequence.
        gradients_P: of some trained tensors, in the order of `probed_weights`.
        num_idle: trained tensors that took no part in any of it.
    """

    logps_N: Tensor
    gradients_P: tuple[Tensor, ...]
    num_idle: int


@dataclass(frozen=True)
class Difference:
    """How far two probes lie apart.

    Attributes:
        logps: norm of the difference over the spread of the plain log-probabilities.
        gradients: the same of one trained tensor's gradient, the worst of all that are compared.
        allowed: the largest difference that rounding explains.
    """

    logps: float
    gradients: float
    allowed: float

    @property
    def is_rounding(self) -> bool:
        """Whether both computations may be called equal."""
        return self.size() <= self.allowed

    def size(self) -> float:
        """The larger of both."""
        return max(self.logps, self.gradients)

    def __str__(self) -> str:
        return f"{self.logps:.1e} in log-probabilities, {self.gradients:.1e} in gradients"


def probe_plain(model: Any, sequences: Sequence[Tensor], autocast: Autocast) -> Probe:
    """Each sequence through the model's own forward, alone and with all its logits.

    Args:
        model: bare or a peft model, on its device.
        sequences: (T,) int64 each; every token but the first is read.
        autocast: makes the context that the run computes in.
    """

    def read(ids: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        return logits.float().log_softmax(-1).gather(-1, ids[1:, None])[:, 0]

    return _probe(model, [partial(read, each) for each in sequences], autocast)


def probe_reads(model: Any, batch: Readable, autocast: Autocast) -> Probe:
    """The same tokens the way the run computes them.

    Args:
        model: as it will be trained.
        batch: a micro-batch that reads every token but the first of each sequence of the plain
            probe, in its order.
        autocast: makes the context that the run computes in.
    """
    return _probe(model, [lambda: read_logps(model, batch).logps_N], autocast)


def compare(plain: Probe, other: Probe, dtype: torch.dtype) -> Difference:
    """How far a probe lies from the plain one.

    Args:
        plain: from `probe_plain`.
        other: from `probe_reads`.
        dtype: that products are computed in.
    """
    spread = (plain.logps_N - plain.logps_N.mean()).norm()
    logps = (other.logps_N - plain.logps_N).norm() / spread.clamp_min(1e-6)
    norms = [float(gradient.norm()) for gradient in plain.gradients_P]
    negligible = NEGLIGIBLE * max(norms, default=0.0) or 1.0
    gradients = [
        float((mine - theirs).norm()) / (norm + negligible)
        for mine, theirs, norm in zip(other.gradients_P, plain.gradients_P, norms, strict=True)
    ]
    return Difference(
        _or_infinite(float(logps)),
        max(map(_or_infinite, gradients), default=0.0),
        TOLERANCE[dtype],
    )


def probed_weights(model: nn.Module) -> list[nn.Parameter]:
    """Trained tensors from all depths of a model, not too many and not too large."""
    trained = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and full_numel(parameter) <= LARGEST_PROBED
    ]
    stride = -(-sum(map(full_numel, trained)) // PROBED_NUMBERS)
    return trained[:: max(stride, 1)]


def _probe(model: nn.Module, forwards: Sequence[Callable[[], Tensor]], autocast: Autocast) -> Probe:
    weights = probed_weights(model)
    sums = [weight.new_zeros(full_shape(weight)) for weight in weights]
    logps: list[Tensor] = []
    idle = {id(each) for each in model.parameters() if each.requires_grad and weights}
    with gathering(model), _without_dropout(model), torch.set_grad_enabled(bool(weights)):
        for forward in forwards:
            with autocast():
                read = forward()
            logps.append(read.detach())
            if weights:
                idle -= _took_part(read)
                found = torch.autograd.grad(read.sum(), weights, allow_unused=True)
                for total, gradient in zip(sums, found, strict=True):
                    total += 0 if gradient is None else gradient
    return Probe(torch.cat(logps), tuple(sums), len(idle))


def _took_part(result: Tensor) -> set[int]:
    """The identities of all leaves that a tensor was computed from."""
    nodes: list[Any] = [result.grad_fn]
    seen: set[Any] = {None, *nodes}
    for node in nodes:
        new = {child for child, _ in node.next_functions} - seen
        seen |= new
        nodes += new
    return {id(node.variable) for node in nodes if hasattr(node, "variable")}


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def _or_infinite(number: float) -> float:
    return number if number == number else float("inf")
