"""losses that weigh tokens: their formulas, on whole logits and on what a model is asked for"""

# N learned tokens, V vocabulary

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.arguments.finetuning import FinetuningArguments
from luthier.losses.tokens import TOKEN_LOSSES
from tests import tiny
from tests.rows import pad
from tests.stages.made import make_stage

ROWS = [
    {"input_ids": [5, 9, 11, 4, 8, 2], "labels": [-100, -100, 11, 4, 8, 2]},
    {"input_ids": [7, 3, 6], "labels": [-100, 3, 6], "weights": [1.0, 0.5, 1.0]},
]


def losses_of(name: str, logits_NV: Tensor, targets_N: Tensor, alpha: float) -> Tensor:
    """(N,), of whole logits."""
    logps_N = logits_NV.log_softmax(1).gather(1, targets_N[:, None])[:, 0]
    if name == "dft":
        return -logps_N * logps_N.detach().exp()
    likeliest = logits_NV.detach().sort(descending=True).values[:, :20]
    entropy_N = torch.distributions.Categorical(logits=likeliest).entropy()
    return -logps_N * (entropy_N / 3) ** alpha


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("name", ["dft", "eaft"])
def test_stage_sft_weighs_tokens(name: str, alpha: float):
    torch.manual_seed(0)
    model = tiny.make_llama(vocab_size=97)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    batch = pad(ROWS, pad_token_id=0)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    logits_NV = model(**inputs).logits.flatten(0, 1)[batch.sources]
    weights_N = torch.tensor([1, 1, 1, 1, 0.5, 1])
    expected = (weights_N * losses_of(name, logits_NV, batch.targets, alpha)).sum()
    expected.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    settings = {f"use_{name}_loss": True} | ({"eaft_alpha": alpha} if name == "eaft" else {})

    total = make_stage("sft", **settings).loss(model, batch).total
    total.backward()

    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        assert (weight.grad - gradients[name]).norm() <= 1e-5 * gradients[name].norm(), name


def theirs(name: str, logits_NV: Tensor, targets_N: Tensor, alpha: float) -> Tensor:
    utils: Any = pytest.importorskip("llamafactory.train.trainer_utils", reason="LLaMA-Factory")
    if name == "dft":
        return utils._dft_cross_entropy(logits_NV, targets_N)
    return utils._eaft_cross_entropy(logits_NV, targets_N, alpha=alpha)


def ours(name: str, logits_NV: Tensor, targets_N: Tensor, alpha: float) -> Tensor:
    logps_N = logits_NV.log_softmax(1).gather(1, targets_N[:, None])[:, 0]
    entry = TOKEN_LOSSES[name]
    likeliest = logits_NV.detach().topk(entry.entropy_of or 1, 1).values
    entropy_N = torch.distributions.Categorical(logits=likeliest).entropy()
    settings = FinetuningArguments(eaft_alpha=alpha)
    return -(entry.weigh(settings, logps_N, entropy_N) * logps_N).mean()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("name", ["dft", "eaft"])
def test_a_weighed_loss_is_that_of_llama_factory(name: str, alpha: float):
    generator = torch.Generator().manual_seed(5)
    logits_NV = (3 * torch.randn(40, 97, generator=generator)).requires_grad_()
    targets_N = torch.randint(0, 97, (40,), generator=generator)

    loss, expected = (each(name, logits_NV, targets_N, alpha) for each in (ours, theirs))

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(each, logits_NV)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_a_certain_token_weighs_all_in_dft_and_nothing_in_eaft():
    settings, certain = FinetuningArguments(), torch.zeros(1)

    assert TOKEN_LOSSES["dft"].weigh(settings, certain, None).item() == 1
    assert TOKEN_LOSSES["eaft"].weigh(settings, certain, certain).item() == 0
    assert math.log(20) == pytest.approx(3, abs=0.01)
