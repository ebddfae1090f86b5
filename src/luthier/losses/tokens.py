"""Losses of tokens: what the negative log-likelihood of each is multiplied by."""

# N learned tokens

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.arguments.finetuning import FinetuningArguments

if TYPE_CHECKING:
    from torch import Tensor

TOP_TOKENS = 20
"""The tokens whose entropy is taken, and by what it is divided: nearly its highest, log 20."""

TOP_ENTROPY = 3.0


@dataclass(frozen=True)
class TokenLoss:
    """A loss that weighs tokens.

    Attributes:
        weigh: (the knobs of `finetuning`, (N,) log-probabilities, (N,) entropies or None) -> (N,).
        entropy_of: of how many of the likeliest tokens entropies are asked for.
    """

    weigh: Callable[[FinetuningArguments, Tensor, Any], Tensor]
    entropy_of: int = 0


def dft(settings: FinetuningArguments, logps_N: Tensor, entropy_N: Any) -> Tensor:
    """(N,): the model's own probability of the token, without gradient.

    DFT, Wu et al. 2025, arXiv 2508.05629.
    """
    return logps_N.detach().exp()


def eaft(settings: FinetuningArguments, logps_N: Tensor, entropy_N: Tensor) -> Tensor:
    """(N,): (H_20 / 3)^alpha, H_20 the entropy of the 20 likeliest tokens, without gradient.

    EAFT, Diao et al. 2026, arXiv 2601.02151, with 3 for log 20 as LLaMA-Factory computes it; alpha:
    `settings.eaft_alpha`.
    """
    return (entropy_N / TOP_ENTROPY).pow(settings.eaft_alpha)


TOKEN_LOSSES = {"dft": TokenLoss(dft), "eaft": TokenLoss(eaft, TOP_TOKENS)}
