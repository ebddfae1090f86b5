"""Losses of pairs of answers, on the summed log-probabilities of each: a function a name.

Each takes P pairs and gives their P losses, not added. Of a pair, with y_w the chosen and y_l the
rejected answer to x, pi the model and pi_ref its reference:

    r_w = log pi(y_w|x) - log pi_ref(y_w|x), r_l alike  `answers.ratios_P2`
    |y_w|, |y_l|  tokens of the answers                 `answers.lengths_P2`
    beta                                                `settings.pref_beta`
    epsilon                                             `settings.dpo_label_smoothing`
    s_w, s_l      r_w and r_l, or f'(exp r) - f'(1) of  `settings.f_divergence_type`

and sigma the logistic function. Modules of torch are loaded when a loss is taken, not before.
"""

# P pairs; a second axis of 2 is the chosen and the rejected answer

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.arguments.choices import PAIR_LOSSES, PairLoss
from luthier.arguments.finetuning import FinetuningArguments

if TYPE_CHECKING:
    from torch import Tensor

MAX_EXPONENT = 80.0
"""exp of more has no float32."""

CERTAIN = -1e-12
"""The log-probability of an answer that is taken to be certain; at 0 its odds would be infinite."""


@dataclass(frozen=True)
class Answers:
    """What pairs of answers are judged by; float32."""

    logps_P2: Tensor  # (P, 2) by the model, with gradient, summed over the tokens of an answer
    lengths_P2: Tensor  # (P, 2), these tokens
    reference_P2: Tensor | None = None
    """(P, 2), the same sums by the reference; None where none is read."""
    chosen_tokens: Tensor | float = 1.0
    """Of a pair, the mean over the whole step; `sft` alone asks for it."""
    mean_reward: Tensor | float = 0.0
    """Of earlier steps, 0 at first; `pref_bco_weight` alone asks for it."""

    @property
    def ratios_P2(self) -> Tensor:
        """(P, 2), how much likelier an answer is than by the reference, as a logarithm."""
        assert self.reference_P2 is not None
        return self.logps_P2 - self.reference_P2

    @property
    def averages_P2(self) -> Tensor:
        """(P, 2), the mean log-probability of a token."""
        return self.logps_P2 / self.lengths_P2


def preference_losses(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """(P,) float32 with gradient: all that `settings` add up to.

    The losses of `pref_loss`, each times its weight of `pref_loss_weights` (MPO, Wang et al. 2024,
    arXiv 2411.10442); (that + w bco) / (1 + w) with w `pref_bco_weight`, as
    LLaMA-Factory weighs it; and `pref_ftx` times the mean negative log-likelihood of the tokens of
    the chosen answer.
    """
    names = settings.pref_loss
    weights = settings.pref_loss_weights or (1.0,) * len(names)
    losses_P = 0.0 * answers.logps_P2[:, 0]
    for name, weight in zip(names, weights, strict=True):
        losses_P = losses_P + weight * PAIR_LOSSES.get(name).take(answers, settings)
    if settings.pref_bco_weight:
        bco_P = _classified(settings.pref_beta * answers.ratios_P2 - answers.mean_reward)
        losses_P = (losses_P + settings.pref_bco_weight * bco_P) / (1 + settings.pref_bco_weight)
    if settings.pref_ftx:
        losses_P = losses_P - settings.pref_ftx * answers.averages_P2[:, 0]
    return losses_P


def rewards(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """(P, 2) without gradient: beta r, or beta times the averages where no reference is read."""
    is_alone = answers.reference_P2 is None
    return settings.pref_beta * (answers.averages_P2 if is_alone else answers.ratios_P2).detach()


def sigmoid(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """DPO: -log sigma(beta (s_w - s_l)), Rafailov et al. 2023, arXiv 2305.18290, equation 7.

    With epsilon of the pairs marked the wrong way round, cDPO (Mitchell 2023, "A note on DPO with
    noisy preferences"): -(1 - epsilon) log sigma(.) - epsilon log sigma(-.).
    """
    return _preferred(_distance(answers, settings), settings.dpo_label_smoothing)


def sigmoid_norm(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """DPO averaged by length: -log sigma(beta (s_w / |y_w| - s_l / |y_l|)).

    Lambert et al. 2024 (Tulu 3), arXiv 2411.15124.
    """
    chosen_P, rejected_P = (_scores(answers, settings) / answers.lengths_P2).unbind(1)
    return _preferred(settings.pref_beta * (chosen_P - rejected_P))


def hinge(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """max(0, 1 - beta (s_w - s_l)): SLiC, Zhao et al. 2023, arXiv 2305.10425, of log-ratios."""
    return (1 - _distance(answers, settings)).relu()


def ipo(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """(s_w / |y_w| - s_l / |y_l| - 1 / (2 beta))^2.

    Azar et al. 2023, arXiv 2310.12036, equation 17, whose tau is beta; that log-ratios are averaged
    by length is what its authors have done (huggingface/trl, issue 1265).
    """
    chosen_P, rejected_P = (_scores(answers, settings) / answers.lengths_P2).unbind(1)
    return (chosen_P - rejected_P - 1 / (2 * settings.pref_beta)) ** 2


def kto_pair(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """(1 - sigma(beta (r_w - z_l)) + 1 - sigma(beta (z_w - r_l))) / 2, z a side's mean r >= 0.

    The means are over the whole step and have a gradient. Ethayarajh et al. 2024, arXiv 2402.01306,
    for pairs as in TRL before 0.9.5, whose mean was over the answers of both sides.
    """
    chosen_P, rejected_P = answers.ratios_P2.unbind(1)
    z_chosen, z_rejected = answers.ratios_P2.mean(0).clamp(min=0)
    wanted_P = (settings.pref_beta * (z_rejected - chosen_P)).sigmoid()
    unwanted_P = (settings.pref_beta * (rejected_P - z_chosen)).sigmoid()
    losses_P: Tensor = (wanted_P + unwanted_P) / 2
    return losses_P


def odds_ratio(answers: Answers) -> Tensor:
    """-log sigma(log odds(y_w) - log odds(y_l)), odds p / (1 - p) of log p averaged by length.

    Hong et al. 2024, arXiv 2403.07691, equation 7.
    """
    averages_P2 = answers.averages_P2.clamp(max=CERTAIN)
    odds_P2 = averages_P2 - (-averages_P2.expm1()).log()  # log(1 - exp x), exact near x = 0
    return _preferred(odds_P2[:, 0] - odds_P2[:, 1])


def orpo(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """-log pi(y_w|x) / |y_w| + beta `odds_ratio`, without a reference.

    Hong et al. 2024, arXiv 2403.07691, equation 6, with beta for the paper's lambda.
    """
    return settings.pref_beta * odds_ratio(answers) - answers.averages_P2[:, 0]


def simpo(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """-log sigma(beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - gamma), no reference.

    Meng et al. 2024, arXiv 2405.14734, equation 6; gamma: `settings.simpo_gamma`.
    """
    chosen_P, rejected_P = answers.averages_P2.unbind(1)
    return _preferred(settings.pref_beta * (chosen_P - rejected_P) - settings.simpo_gamma)


def robust(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """DPO without bias where epsilon of the pairs are the wrong way round.

    (-(1 - epsilon) log sigma(x) + epsilon log sigma(-x)) / (1 - 2 epsilon), x = beta (s_w - s_l):
    Chowdhury et al. 2024, arXiv 2403.00409.
    """
    x_P, epsilon = _distance(answers, settings), settings.dpo_label_smoothing
    clean_P, flipped_P = _preferred(x_P), _preferred(-x_P)
    return ((1 - epsilon) * clean_P - epsilon * flipped_P) / (1 - 2 * epsilon)


def exo_pair(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """EXO: the divergence of the model's preference q from (1 - epsilon, epsilon), epsilon above 0.

    q (log q - log(1 - epsilon)) + (1 - q) (log(1 - q) - log epsilon), q = sigma(beta (s_w - s_l)):
    Ji et al. 2024, arXiv 2402.00856, equation 16.
    """
    x_P, epsilon = _distance(answers, settings), settings.dpo_label_smoothing
    chosen_P = x_P.sigmoid() * (-_preferred(x_P) - math.log1p(-epsilon))
    rejected_P = (-x_P).sigmoid() * (-_preferred(-x_P) - math.log(epsilon))
    return chosen_P + rejected_P


def nca_pair(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """-log sigma(beta r_w) - log sigma(-beta r_w) / 2 - log sigma(-beta r_l) / 2.

    Chen et al. 2024, arXiv 2402.05369, for two answers.
    """
    chosen_P, rejected_P = (settings.pref_beta * answers.ratios_P2).unbind(1)
    return _preferred(chosen_P) + 0.5 * _preferred(-chosen_P) + 0.5 * _preferred(-rejected_P)


def bco_pair(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """-log sigma(beta r_w) - log sigma(-beta r_l), Jung et al. 2024, arXiv 2404.04656, no shift."""
    return _classified(settings.pref_beta * answers.ratios_P2)


def sppo_hard(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2.

    Wu et al. 2024, arXiv 2405.00675, equation 4.7, the probability to win 1 and 0.
    """
    chosen_P, rejected_P = answers.ratios_P2.unbind(1)
    aim = 0.5 / settings.pref_beta
    return (chosen_P - aim) ** 2 + (rejected_P + aim) ** 2


def aot(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """The loss of `sigmoid` on sorted margins: those of the model against those of the reference.

    Each margin, log pi(y_w|x) - log pi(y_l|x), is held against the one of the reference that stands
    at its place among those of the whole step: Melnyk et al. 2024, arXiv 2406.05882.
    """
    assert answers.reference_P2 is not None
    ours_P, theirs_P = (
        (each_P2[:, 0] - each_P2[:, 1]).sort().values
        for each_P2 in (answers.logps_P2, answers.reference_P2)
    )
    return _preferred(settings.pref_beta * (ours_P - theirs_P), settings.dpo_label_smoothing)


def aot_unpaired(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """The loss of `sigmoid` on sorted log-ratios: r_w of the whole step against its r_l.

    Melnyk et al. 2024, arXiv 2406.05882, for answers that are no pairs.
    """
    chosen_P, rejected_P = (each_P.sort().values for each_P in answers.ratios_P2.unbind(1))
    return _preferred(settings.pref_beta * (chosen_P - rejected_P), settings.dpo_label_smoothing)


def apo_zero(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """1 - sigma(beta r_w) + sigma(beta r_l): chosen answers better than the model's own.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7.
    """
    chosen_P, rejected_P = (settings.pref_beta * answers.ratios_P2).unbind(1)
    return (-chosen_P).sigmoid() + rejected_P.sigmoid()


def apo_down(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """sigma(beta r_w) + 1 - sigma(beta (r_w - r_l)): chosen answers worse than the model's own.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 8.
    """
    chosen_P, rejected_P = (settings.pref_beta * answers.ratios_P2).unbind(1)
    return chosen_P.sigmoid() + (rejected_P - chosen_P).sigmoid()


def discopop(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """(1 - m) -log sigma(x) + m exp(-x), x = beta (s_w - s_l), m = sigma(x / tau).

    Lu et al. 2024, arXiv 2406.08414, equation 5; tau: `settings.discopop_tau`.
    """
    x_P = _distance(answers, settings)
    mixed_P = x_P / settings.discopop_tau
    # exp(-x) alone has no float32 where m is 0
    return (-mixed_P).sigmoid() * _preferred(x_P) + (-x_P - _preferred(mixed_P)).exp()


def sft(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """The negative log-likelihood of the chosen answer, over the mean length of those of the step.

    Its mean over the step is one over all tokens of chosen answers.
    """
    return -answers.logps_P2[:, 0] / answers.chosen_tokens


def _scores(answers: Answers, settings: FinetuningArguments) -> Tensor:
    """(P, 2): s_w and s_l, f'(t) - f'(1) at t = exp r.

    Wang et al. 2023 (f-DPO), arXiv 2309.16240, table 1; the constant cancels in s_w - s_l.
    """
    ratios_P2 = answers.ratios_P2
    alpha = settings.f_alpha_divergence_coef
    match settings.f_divergence_type:
        case "forward_kl":  # f'(t) = 1 - 1 / t
            return 1 - _exp(-ratios_P2)
        case "js_divergence":  # f'(t) = log(2 t / (1 + t))
            return math.log(2) - _preferred(ratios_P2)
        case "alpha_divergence" if (
            abs(alpha - 1) >= 1e-6
        ):  # f'(t) = (t^(alpha - 1) - 1) / (alpha - 1)
            return (_exp((alpha - 1) * ratios_P2) - 1) / (alpha - 1)
    return ratios_P2  # f'(t) = log t + 1


def _distance(answers: Answers, settings: FinetuningArguments) -> Tensor:
    chosen_P, rejected_P = _scores(answers, settings).unbind(1)
    return settings.pref_beta * (chosen_P - rejected_P)


def _preferred(x: Tensor, epsilon: float = 0.0) -> Tensor:
    """-log sigma(x), smoothed with -log sigma(-x)."""
    from torch.nn.functional import logsigmoid

    if not epsilon:
        return -logsigmoid(x)
    return -(1 - epsilon) * logsigmoid(x) - epsilon * logsigmoid(-x)


def _classified(rewards_P2: Tensor) -> Tensor:
    return _preferred(rewards_P2[:, 0]) + _preferred(-rewards_P2[:, 1])


def _exp(x: Tensor) -> Tensor:
    return x.clamp(max=MAX_EXPONENT).exp()


PAIR_LOSSES.register("sigmoid")(PairLoss(sigmoid, smooths=True, diverges=True))
PAIR_LOSSES.register("sigmoid_norm")(PairLoss(sigmoid_norm, diverges=True))
PAIR_LOSSES.register("hinge")(PairLoss(hinge, diverges=True))
PAIR_LOSSES.register("ipo")(PairLoss(ipo, diverges=True))
PAIR_LOSSES.register("kto_pair")(PairLoss(kto_pair, couples=True))
PAIR_LOSSES.register("orpo")(PairLoss(orpo, needs_reference=False))
PAIR_LOSSES.register("simpo")(PairLoss(simpo, needs_reference=False))
PAIR_LOSSES.register("robust")(PairLoss(robust, smooths=True, diverges=True))
PAIR_LOSSES.register("exo_pair")(
    PairLoss(exo_pair, smooths=True, diverges=True, needs_smoothing=True)
)
PAIR_LOSSES.register("nca_pair")(PairLoss(nca_pair))
PAIR_LOSSES.register("bco_pair")(PairLoss(bco_pair))
PAIR_LOSSES.register("sppo_hard")(PairLoss(sppo_hard))
PAIR_LOSSES.register("aot")(PairLoss(aot, smooths=True, couples=True))
PAIR_LOSSES.register("aot_unpaired", "aot_pair")(PairLoss(aot_unpaired, smooths=True, couples=True))
PAIR_LOSSES.register("apo_zero")(PairLoss(apo_zero))
PAIR_LOSSES.register("apo_down")(PairLoss(apo_down))
PAIR_LOSSES.register("discopop")(PairLoss(discopop, diverges=True))
PAIR_LOSSES.register("sft")(PairLoss(sft, needs_reference=False, averages_step=True))
