"""Losses of tokens that stand in the place of their negative log-likelihood, -log p_t."""

# N learned tokens

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.arguments.finetuning import FinetuningArguments

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.kernels.linear_logps import Logps

TOP_TOKENS = 20
"""The tokens whose entropy is taken, and by what it is divided: nearly its highest, log 20."""

TOP_ENTROPY = 3.0


@dataclass(frozen=True)
class TokenLoss:
    """What stands behind a `use_..._loss`.

    Attributes:
        take: (what was read of N tokens, the knobs of `finetuning`) -> (N,) losses, with gradient.
        entropy_of: of how many of the likeliest tokens entropies are asked for.
        needs_reference: whether divergences from the reference are asked for.
    """

    take: Callable[[Logps, FinetuningArguments], Tensor]
    entropy_of: int = 0
    needs_reference: bool = False


def dft(read: Logps, settings: FinetuningArguments) -> Tensor:
    """-sg(p_t) log p_t: times the model's own probability of the token, without gradient.

    DFT, Wu et al. 2025, arXiv 2508.05629.
    """
    return -read.logps_N.detach().exp() * read.logps_N


def asft(read: Logps, settings: FinetuningArguments) -> Tensor:
    """`dft` + alpha KL(q || p), q the distribution of the reference for the same token.

    ASFT, Zhu et al. 2025, arXiv 2509.23753, with the divergence as LLaMA-Factory takes it, from the
    reference to the model, on every learned token; alpha: `settings.asft_alpha`.
    """
    assert read.divergence is not None
    return dft(read, settings) + settings.asft_alpha * read.divergence


def eaft(read: Logps, settings: FinetuningArguments) -> Tensor:
    """-(H_20 / 3)^alpha log p_t, H_20 the entropy of the 20 likeliest tokens, without gradient.

    EAFT, Diao et al. 2026, arXiv 2601.02151, with 3 for log 20 as LLaMA-Factory computes it; alpha:
    `settings.eaft_alpha`.
    """
    assert read.entropy is not None
    return -(read.entropy / TOP_ENTROPY).pow(settings.eaft_alpha) * read.logps_N


TOKEN_LOSSES = {
    "dft": TokenLoss(dft),
    "asft": TokenLoss(asft, needs_reference=True),
    "eaft": TokenLoss(eaft, TOP_TOKENS),
}
"""The losses of `use_dft_loss` and its like."""
