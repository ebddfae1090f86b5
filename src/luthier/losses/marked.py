"""Losses of single answers that were marked as wanted or unwanted."""

# S answers

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.arguments.finetuning import FinetuningArguments

if TYPE_CHECKING:
    from torch import Tensor


def kahneman_tversky(
    ratios_S: Tensor, wanted_S: Tensor, z0_S: Tensor, settings: FinetuningArguments
) -> Tensor:
    """(S,) w sigma(beta (z0 - r)) of a wanted answer, u sigma(beta (r - z0)) of an unwanted one.

    Ethayarajh et al. 2024, arXiv 2402.01306, equations 5 to 7, whose 1 - sigma(x) is sigma(-x); w,
    u: `settings.kto_chosen_weight`, `settings.kto_rejected_weight`; beta: `settings.pref_beta`.
    With z0 = 0 it is `apo_zero_unpaired` (D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7).

    Args:
        ratios_S: r, log p(y|x) - log p_ref(y|x), with gradient.
        wanted_S: 1 or 0.
        z0_S: the mean log-ratio of mismatched answers, clamped at 0, without gradient.
        settings: of the run.
    """
    weights_S = settings.kto_chosen_weight * wanted_S
    weights_S = weights_S + settings.kto_rejected_weight * (1 - wanted_S)
    towards_S = 2 * wanted_S - 1
    return weights_S * (settings.pref_beta * towards_S * (z0_S - ratios_S)).sigmoid()
