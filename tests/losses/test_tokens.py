"""losses of tokens: their formulas, on whole logits and on what a model is asked for"""

# N learned tokens, V vocabulary

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.arguments.finetuning import FinetuningArguments
from luthier.kernels.linear_logps import Logps
from luthier.losses.tokens import TOKEN_LOSSES
from luthier.modeling.reads import read_distribution
from tests import tiny
from tests.rows import pad
from tests.stages.made import make_stage

ROWS = [
    {"input_ids": [5, 9, 11, 4, 8, 2], "labels": [-100, -100, 11, 4, 8, 2]},
    {"input_ids": [7, 3, 6], "labels": [-100, 3, 6], "weights": [1.0, 0.5, 1.0]},
]


NAMES = tuple(TOKEN_LOSSES)


def divergences(logits_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """(N,) KL from the reference."""
    model, reference = (
        torch.distributions.Categorical(logits=each) for each in (logits_NV, reference_NV)
    )
    return torch.distributions.kl_divergence(reference, model)


def losses_of(
    name: str, logits_NV: Tensor, reference_NV: Tensor, targets_N: Tensor, alpha: float
) -> Tensor:
    """(N,), of whole logits."""
    logps_N = logits_NV.log_softmax(1).gather(1, targets_N[:, None])[:, 0]
    dft_N = -logps_N * logps_N.detach().exp()
    if name == "dft":
        return dft_N
    if name == "asft":
        return dft_N + alpha * divergences(logits_NV, reference_NV)
    likeliest = logits_NV.detach().sort(descending=True).values[:, :20]
    entropy_N = torch.distributions.Categorical(logits=likeliest).entropy()
    return -logps_N * (entropy_N / 3) ** alpha


def make_model(seed: int) -> Any:
    torch.manual_seed(seed)
    model = tiny.make_llama(vocab_size=97).double()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_stage_sft_weighs_tokens(name: str, alpha: float):
    model, reference = make_model(0), make_model(1)
    batch = pad(ROWS, pad_token_id=0)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    logits_NV, reference_NV = (
        each(**inputs).logits.flatten(0, 1)[batch.sources] for each in (model, reference)
    )
    weights_N = torch.tensor([1, 1, 1, 1, 0.5, 1])
    losses_N = losses_of(name, logits_NV, reference_NV.detach(), batch.targets, alpha)
    expected = (weights_N * losses_N).sum()
    expected.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    knobs = {} if name == "dft" else {f"{name}_alpha": alpha}
    stage = make_stage("sft", **{f"use_{name}_loss": True}, **knobs)
    assert stage.needs_reference == (name == "asft")
    if stage.needs_reference:
        with torch.no_grad():
            batch = stage.measure_reference(reference, batch)

    total = stage.loss(model, batch).total
    total.backward()

    assert total.item() == pytest.approx(expected.item(), rel=1e-9)
    for name, weight in model.named_parameters():
        assert (weight.grad - gradients[name]).norm() <= 1e-9 * gradients[name].norm(), name


@pytest.mark.parametrize("chunk_bytes", [None, 1])
def test_a_distribution_is_of_the_weights_it_was_read_with(
    chunk_bytes: int | None, monkeypatch: pytest.MonkeyPatch
):
    if chunk_bytes is not None:  # a read at a time
        monkeypatch.setattr("luthier.kernels.linear_logps.CHUNK_BYTES", {"cpu": chunk_bytes})
    model = make_model(0)
    batch = pad(ROWS, pad_token_id=0)
    stage = make_stage("sft", use_asft_loss=True)
    with torch.no_grad():
        first = read_distribution(model, batch).logps(0, len(batch.targets))
        batch = stage.measure_reference(model, batch)
        unmoved = stage.loss(model, batch).total
        plain = make_stage("sft", use_dft_loss=True).loss(model, replace(batch, against=None)).total
        own, model.lm_head.weight = model.lm_head.weight, torch.nn.Parameter(torch.zeros(97, 32))
        again = batch.against.logps(0, len(batch.targets))

    assert own.shape == (97, 32)
    assert unmoved.item() == pytest.approx(plain.item(), rel=1e-6)
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def theirs(
    name: str, logits_NV: Tensor, reference_NV: Tensor, targets_N: Tensor, alpha: float
) -> Tensor:
    utils: Any = pytest.importorskip("llamafactory.train.trainer_utils", reason="LLaMA-Factory")
    if name == "dft":
        return utils._dft_cross_entropy(logits_NV, targets_N)
    if name == "asft":
        return utils._asft_cross_entropy(logits_NV, targets_N, reference_NV, asft_alpha=alpha)
    return utils._eaft_cross_entropy(logits_NV, targets_N, alpha=alpha)


def ours(
    name: str, logits_NV: Tensor, reference_NV: Tensor, targets_N: Tensor, alpha: float
) -> Tensor:
    logps_N = logits_NV.log_softmax(1).gather(1, targets_N[:, None])[:, 0]
    entry = TOKEN_LOSSES[name]
    likeliest = logits_NV.detach().topk(entry.entropy_of or 1, 1).values
    entropy_N = torch.distributions.Categorical(logits=likeliest).entropy()
    read = Logps(logps_N, None, entropy_N, divergences(logits_NV, reference_NV))
    return entry.take(read, FinetuningArguments(eaft_alpha=alpha, asft_alpha=alpha)).mean()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_of_tokens_is_that_of_llama_factory(name: str, alpha: float):
    generator = torch.Generator().manual_seed(5)
    logits_NV, reference_NV = 3 * torch.randn(2, 40, 97, generator=generator)
    logits_NV.requires_grad_()
    targets_N = torch.randint(0, 97, (40,), generator=generator)

    loss, expected = (
        each(name, logits_NV, reference_NV, targets_N, alpha) for each in (ours, theirs)
    )

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(each, logits_NV)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_a_certain_token_weighs_all_in_dft_and_nothing_in_eaft():
    settings, logps_N = FinetuningArguments(), torch.zeros(1, requires_grad=True)
    read = Logps(logps_N, None, torch.zeros(1))

    slopes = {
        name: torch.autograd.grad(TOKEN_LOSSES[name].take(read, settings).sum(), logps_N)[0].item()
        for name in ("dft", "eaft")
    }
    assert slopes == {"dft": -1, "eaft": 0}
    assert math.log(20) == pytest.approx(3, abs=0.01)
