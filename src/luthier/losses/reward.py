"""Losses of scores: a better and a worse answer to each prompt."""

# P pairs

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margins_P: Tensor | None = None) -> Tensor:
    """(P,) -log sigmoid(r_w - r_l - m): how unlikely it is that the chosen answer wins.

    Bradley and Terry 1952, as a loss by Ouyang et al. 2022 (arXiv 2203.02155, equation 1); the
    margin m, by how much more the chosen answer is to score, by Touvron et al. 2023 (Llama 2, arXiv
    2307.09288, equation 2).
    """
    ahead_P = chosen_P - rejected_P
    return -logsigmoid(ahead_P if margins_P is None else ahead_P - margins_P)


def uncentered(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """(P,) (r_w + r_l)^2, which keeps scores around 0, since a loss of differences does not.

    Eisenstein et al. 2023 (arXiv 2312.09244), equation 2, where it is multiplied by eta
    (`center_rewards_coefficient`).
    """
    return (chosen_P + rejected_P) ** 2
