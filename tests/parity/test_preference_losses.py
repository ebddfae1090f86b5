"""every loss of pairs is TRL's on random log-probabilities, or LLaMA-Factory's if TRL has none"""

# P pairs, T tokens

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.arguments.finetuning import FinetuningArguments
from luthier.losses.pairs import Answers, preference_losses, rewards

PAIRS, TOKENS = 7, 12

IN_TRL = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)


class Tables:
    """Random log-probabilities of tokens, (2P, T), chosen answers first; shorter ones end early."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(11)
        lengths = torch.randint(1, TOKENS, (2 * PAIRS,), generator=generator)
        self.mask = torch.arange(TOKENS) < lengths[:, None]
        self.model, self.reference = (
            -2 * torch.rand(2 * PAIRS, TOKENS, generator=generator) * self.mask for _ in range(2)
        )

    def answers(self, weights: Tensor | float = 1.0) -> Answers:
        model_P2, reference_P2, lengths_P2 = (
            torch.stack((each * weights).sum(1).chunk(2), dim=1)
            for each in (self.model, self.reference, self.mask.float())
        )
        lengths_P2 = torch.stack(self.mask.float().sum(1).chunk(2), dim=1)
        return Answers(model_P2, lengths_P2, reference_P2, lengths_P2[:, 0].mean())

    def weights(self, ld_alpha: float) -> Tensor:
        """(2P, T) of LD-DPO."""
        shorter = torch.minimum(*self.mask.sum(1).chunk(2)).repeat(2)
        return torch.where(torch.arange(TOKENS) < shorter[:, None], 1.0, ld_alpha)


def by_trl(tables: Tables, settings: FinetuningArguments) -> tuple[float, dict[str, float]]:
    """The loss and the metrics of TRL's own function, its model replaced by the tables."""
    trainer = pytest.importorskip("trl.trainer.dpo_trainer", reason="needs trl").DPOTrainer

    def model(logps: Tensor) -> Any:
        def forward(**inputs: Any) -> Any:
            nothing = torch.zeros_like(logps)
            return SimpleNamespace(
                log_probs=logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
            )

        forward.training = True
        return forward

    def same(x: Tensor) -> Tensor:
        return x

    run = SimpleNamespace(
        model=model(tables.model),
        ref_model=model(tables.reference),
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        aux_loss_enabled=False,
        ld_alpha=settings.ld_alpha,
        precompute_ref_logps=False,
        args=SimpleNamespace(
            gradient_checkpointing_kwargs=None, discopop_tau=settings.discopop_tau
        ),
        f_divergence_type=settings.f_divergence_type,
        f_alpha_divergence_coef=settings.f_alpha_divergence_coef,
        loss_types=settings.pref_loss,
        loss_weights=settings.pref_loss_weights or [1.0] * len(settings.pref_loss),
        beta=settings.pref_beta,
        label_smoothing=settings.dpo_label_smoothing,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    shown = torch.cat([torch.zeros(2 * PAIRS, 1), tables.mask.float()], dim=1)
    inputs = {
        "input_ids": torch.zeros_like(shown).long(),
        "attention_mask": torch.ones_like(shown),
        "completion_mask": shown,
    }
    with pytest.MonkeyPatch.context() as patch:
        module = "trl.trainer.dpo_trainer"
        patch.setattr(f"{module}.is_peft_model", lambda model: False)
        patch.setattr(f"{module}.disable_gradient_checkpointing", lambda *given: torch.no_grad())
        loss = trainer._compute_loss(run, run.model, inputs, False)
    return float(loss), {name: each[-1] for name, each in run._metrics["train"].items()}


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("name", IN_TRL)
def test_a_loss_is_that_of_trl(name: str, beta: float):
    smoothed = ("exo_pair", "robust", "aot", "aot_unpaired")  # sigmoid is not smoothed there
    settings = FinetuningArguments(
        pref_loss=(name,),
        pref_beta=beta,
        dpo_label_smoothing=0.2 if name in smoothed else 0.0,
    )
    tables = Tables()
    answers = tables.answers()

    expected, metrics = by_trl(tables, settings)

    assert preference_losses(answers, settings).mean().item() == pytest.approx(expected, rel=1e-6)
    for side, told in enumerate(("chosen", "rejected")):
        reward = rewards(answers, settings)[:, side].mean().item()
        assert reward == pytest.approx(metrics[f"rewards/{told}"], rel=1e-6)


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize(
    "name", ["sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm"]
)
def test_a_divergence_is_that_of_trl(name: str, divergence: str):
    settings = FinetuningArguments(
        pref_loss=(name,),
        dpo_label_smoothing=0.2 if name == "exo_pair" else 0.0,
        f_divergence_type=divergence,
        f_alpha_divergence_coef=0.3,
    )
    tables = Tables()

    found = preference_losses(tables.answers(), settings).mean().item()

    assert found == pytest.approx(by_trl(tables, settings)[0], rel=1e-6)


def test_a_mixture_of_losses_is_that_of_trl():
    settings = FinetuningArguments(
        pref_loss="sigmoid, bco_pair, sft", pref_loss_weights=(0.8, 0.2, 1.5)
    )
    tables = Tables()

    found = preference_losses(tables.answers(), settings).mean().item()

    assert found == pytest.approx(by_trl(tables, settings)[0], rel=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "ipo"])
def test_shorter_weights_of_longer_answers_are_those_of_trl(name: str):
    settings = FinetuningArguments(pref_loss=(name,), ld_alpha=0.4)
    tables = Tables()

    found = preference_losses(tables.answers(tables.weights(0.4)), settings).mean().item()

    assert found == pytest.approx(by_trl(tables, settings)[0], rel=1e-6)


def formula_of_llama_factory(name: str, answers: Answers, beta: float, gamma: float) -> Tensor:
    """Formulas of LLaMA-Factory 0.9.4, and of TRL 0.9.4 for kto_pair, written plainly."""
    chosen, rejected = answers.averages_P2.unbind(1)
    match name:
        case "orpo":
            odds = (chosen - rejected) - (
                torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected))
            )
            return -chosen - beta * logsigmoid(odds)
        case "simpo":
            return -logsigmoid(beta * (chosen - rejected - gamma / beta))
        case "sigmoid":  # smoothed
            delta = beta * (answers.ratios_P2[:, 0] - answers.ratios_P2[:, 1])
            return -logsigmoid(delta) * 0.9 - logsigmoid(-delta) * 0.1
    chosen, rejected = answers.ratios_P2.unbind(1)
    wanted = 1 - torch.sigmoid(beta * (chosen - rejected.mean().clamp(min=0)))
    unwanted = 1 - torch.sigmoid(beta * (chosen.mean().clamp(min=0) - rejected))
    return torch.cat([wanted, unwanted])


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("name", ["orpo", "simpo", "sigmoid", "kto_pair"])
def test_a_loss_that_trl_has_not_is_that_of_llama_factory(name: str, beta: float):
    smoothing = 0.1 if name == "sigmoid" else 0.0
    settings = FinetuningArguments(
        pref_loss=(name,), pref_beta=beta, simpo_gamma=0.7, dpo_label_smoothing=smoothing
    )
    answers = Tables().answers()

    found = preference_losses(answers, settings).mean().item()

    expected = formula_of_llama_factory(name, answers, beta, 0.7).mean().item()
    assert found == pytest.approx(expected, rel=1e-6)
