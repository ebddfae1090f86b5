"""losses of pairs are what their papers say, reckoned by hand, and finite where others were not"""

# P pairs

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.arguments.choices import PAIR_LOSSES
from luthier.arguments.finetuning import FinetuningArguments
from luthier.losses.pairs import Answers, odds_ratio, preference_losses, rewards

NAMES = PAIR_LOSSES.names()


def knobs(*names: str, **settings: Any) -> FinetuningArguments:
    smoothing = {"dpo_label_smoothing": 0.1} if "exo_pair" in names else {}
    return FinetuningArguments(pref_loss=names, **smoothing | settings)


def of_pair(*, chosen: float, rejected: float, reference: tuple[float, float]) -> Answers:
    """A pair of answers of 4 and 2 tokens."""
    return Answers(
        torch.tensor([[chosen, rejected]]),
        torch.tensor([[4.0, 2.0]]),
        torch.tensor([reference]),
        chosen_tokens=4.0,
    )


def random_answers(num_pairs: int = 6) -> Answers:
    generator = torch.Generator().manual_seed(3)
    lengths_P2 = torch.randint(1, 9, (num_pairs, 2), generator=generator).float()
    logps_P2, reference_P2 = (
        -lengths_P2 * torch.rand(num_pairs, 2, generator=generator) * 3 for _ in range(2)
    )
    return Answers(logps_P2.requires_grad_(), lengths_P2, reference_P2, lengths_P2[:, 0].mean())


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# r_w = -4 + 5 = 1, r_l = -6 + 4 = -2; averages by length -1 and -3
PAIR = of_pair(chosen=-4.0, rejected=-6.0, reference=(-5.0, -4.0))


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sigmoid", {"pref_beta": 0.5}, -math.log(logistic(0.5 * 3))),
        (
            "sigmoid",
            {"pref_beta": 0.5, "dpo_label_smoothing": 0.2},
            -0.8 * math.log(logistic(1.5)) - 0.2 * math.log(logistic(-1.5)),
        ),
        ("hinge", {"pref_beta": 0.1}, 1 - 0.1 * 3),
        ("hinge", {"pref_beta": 0.5}, 0.0),
        ("ipo", {"pref_beta": 0.1}, (1 / 4 + 2 / 2 - 5) ** 2),
        (
            "orpo",
            {"pref_beta": 0.1},
            1
            - 0.1
            * math.log(
                logistic(
                    math.log(math.exp(-1) / (1 - math.exp(-1)))
                    - math.log(math.exp(-3) / (1 - math.exp(-3)))
                )
            ),
        ),
        ("simpo", {"pref_beta": 2.0, "simpo_gamma": 0.5}, -math.log(logistic(2 * 2 - 0.5))),
        ("sft", {}, 1.0),
    ],
)
def test_a_pair_reckoned_by_hand(name: str, settings: dict[str, Any], expected: float):
    (loss,) = preference_losses(PAIR, knobs(name, **settings))

    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_a_step_of_aot_reckoned_by_hand():
    answers = Answers(
        torch.tensor([[-1.0, -4.0], [-3.0, -2.0]]),  # margins 3, -1; sorted -1, 3
        torch.ones(2, 2),
        torch.tensor([[-2.0, -4.0], [-2.0, -7.0]]),  # margins 2, 5
    )
    # r_w 1, -1, sorted -1, 1; r_l 0, 5
    sorted_margins, sorted_ratios = (-3.0, -2.0), (-1.0, -4.0)

    for name, distances in (("aot", sorted_margins), ("aot_unpaired", sorted_ratios)):
        losses_P = preference_losses(answers, knobs(name, pref_beta=0.5))
        assert losses_P.tolist() == pytest.approx(
            [-math.log(logistic(0.5 * each)) for each in distances]
        )


def test_a_step_of_kto_pair_reckoned_by_hand():
    answers = Answers(
        torch.tensor([[-1.0, -3.0], [-1.0, -2.0]]),
        torch.ones(2, 2),
        torch.tensor([[-2.0, -2.0], [-4.0, -2.0]]),
    )
    # r_w 1, 3, mean 2; r_l -1, 0, mean below 0
    losses_P = preference_losses(answers, knobs("kto_pair", pref_beta=1.0))

    assert losses_P.tolist() == pytest.approx(
        [
            (1 - logistic(r_w - 0) + 1 - logistic(2 - r_l)) / 2
            for r_w, r_l in ((1.0, -1.0), (3.0, 0.0))
        ]
    )


def test_the_old_name_of_aot_unpaired_is_the_same_loss():
    assert PAIR_LOSSES.get("aot_pair") is PAIR_LOSSES.get("aot_unpaired")


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_has_its_place_in_a_mixture(name: str):
    answers = random_answers()
    alone_P = preference_losses(answers, knobs(name))
    other_P = preference_losses(answers, knobs("hinge", pref_beta=0.1))

    smoothing = {"dpo_label_smoothing": 0.1} if name == "exo_pair" else {}
    mixed_P = preference_losses(
        answers, knobs(name, "hinge", pref_loss_weights=(0.25, 2.0), **smoothing)
    )

    torch.testing.assert_close(mixed_P, 0.25 * alone_P + 2 * other_P)


def test_bco_is_weighed_against_the_rest_and_shifted_by_earlier_rewards():
    shifted = Answers(PAIR.logps_P2, PAIR.lengths_P2, PAIR.reference_P2, mean_reward=0.3)

    (loss,) = preference_losses(shifted, knobs("sigmoid", pref_beta=0.5, pref_bco_weight=3.0))

    dpo = -math.log(logistic(1.5))
    bco = -math.log(logistic(0.5 - 0.3)) - math.log(logistic(-(-1.0 - 0.3)))
    assert loss.item() == pytest.approx((dpo + 3 * bco) / 4)


def test_the_supervised_loss_is_that_of_the_chosen_answers_tokens():
    plain = preference_losses(PAIR, knobs("sigmoid"))

    more = preference_losses(PAIR, knobs("sigmoid", pref_ftx=2.0))

    assert (more - plain).item() == pytest.approx(2.0 * 4 / 4)


def test_rewards_are_averages_where_no_reference_is_read():
    alone = Answers(PAIR.logps_P2, PAIR.lengths_P2)

    assert rewards(PAIR, knobs(pref_beta=0.5)).tolist() == [[0.5, -1.0]]
    assert rewards(alone, knobs(pref_beta=0.5)).tolist() == [[-0.5, -1.5]]


def certain(logp: float) -> Answers:
    return of_pair(chosen=4 * logp, rejected=-40.0, reference=(-1.0, -1.0))


def test_odds_are_exact_where_an_answer_is_all_but_certain():
    loss = odds_ratio(certain(-1e-9))

    distance = (-1e-9 + 9 * math.log(10)) - (-20 - math.log1p(-math.exp(-20)))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-distance)), rel=1e-3)


EXTREMES = {
    "certain": (0.0, 0.0),
    "all but certain": (-1e-9, -1e-9),
    "hopeless": (-3e4, -3e4),
    "far apart": (-1.0, -3e4),
    "far apart the wrong way round": (-3e4, -1.0),
}


DIVERGENCES = ("forward_kl", "js_divergence", "alpha_divergence")
SETTINGS = [(name, "reverse_kl") for name in NAMES] + [
    (name, each) for name in NAMES for each in DIVERGENCES if PAIR_LOSSES.get(name).diverges
]


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize(("name", "divergence"), SETTINGS)
def test_no_loss_and_no_gradient_is_nan(name: str, divergence: str, case: str):
    logps_P2 = torch.tensor([EXTREMES[case], (-2.0, -3.0)], requires_grad=True)
    answers = Answers(logps_P2, torch.ones(2, 2), torch.tensor([[-2.0, -2.0], [-1.0, -5.0]]))

    losses_P = preference_losses(answers, knobs(name, f_divergence_type=divergence))
    (gradient_P2,) = torch.autograd.grad(losses_P.sum(), logps_P2)

    assert not losses_P.isnan().any()
    assert gradient_P2.isfinite().all()


def gradient_of(name: str, answers: Answers) -> Tensor:
    loss = preference_losses(answers, knobs(name)).sum()
    return torch.autograd.grad(loss, answers.logps_P2)[0]


@pytest.mark.parametrize("name", [n for n in NAMES if not PAIR_LOSSES.get(n).couples])
def test_a_pair_that_is_not_coupled_knows_nothing_of_others(name: str):
    answers = random_answers()
    whole_P2 = gradient_of(name, answers)

    for pair in range(len(whole_P2)):
        at = slice(pair, pair + 1)
        assert answers.reference_P2 is not None
        alone = Answers(
            answers.logps_P2[at].detach().requires_grad_(),
            answers.lengths_P2[at],
            answers.reference_P2[at],
            answers.chosen_tokens,
        )
        torch.testing.assert_close(gradient_of(name, alone), whole_P2[at])


@pytest.mark.parametrize("name", [n for n in NAMES if not PAIR_LOSSES.get(n).needs_reference])
def test_a_loss_without_reference_reads_none(name: str):
    answers = random_answers()
    alone = Answers(answers.logps_P2, answers.lengths_P2, chosen_tokens=answers.chosen_tokens)

    torch.testing.assert_close(
        preference_losses(alone, knobs(name)), preference_losses(answers, knobs(name))
    )
