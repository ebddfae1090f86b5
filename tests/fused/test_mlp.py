from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from luthier.fused import norm as norms
from luthier.fused.mlp import ACTIVATIONS, gated_mlp
from luthier.fused.norm import NormFormula, rms_norm
from tests.fused.test_lora import far, learned, make, plain, tensors_of

SILU = ACTIVATIONS["silu"]


def plain_mlp(x, gate, up, down):
    return plain(torch.nn.functional.silu(plain(x, gate)) * plain(x, up), down)


def make_three(**options):
    return [make(8, 12, **options), make(8, 12, **options), make(12, 8, **options)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=[7, 512], ids=["many blocks", "one block"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(norms, "NUMBERS_PER_THREAD", 16)
    monkeypatch.setattr(norms, "LEAST_PRODUCT_ROWS", request.param)
    monkeypatch.setattr(norms, "PRODUCT_ROWS_PER_THREAD", 1)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("is_frozen", [True, False])
def test_gradients_agree_with_finite_differences(is_frozen):
    projections = make_three(dtype=torch.float64, is_frozen=is_frozen, rank=2)
    x = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(
        lambda *_: gated_mlp(x, *projections, SILU), learned(x, projections), fast_mode=True
    )


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(
    ("options", "x_dtype", "is_autocast", "close"),
    [
        ({}, torch.float32, False, 2e-6),
        ({"is_frozen": False}, torch.float32, False, 2e-6),
        ({"rank": 0, "is_frozen": False}, torch.float32, False, 2e-6),
        ({"dtype": torch.bfloat16, "is_frozen": False}, torch.bfloat16, False, 2**-5),
        ({"dtype": torch.bfloat16, "low_dtype": torch.float32}, torch.bfloat16, False, 2**-5),
        ({"is_frozen": False}, torch.float32, True, 2**-5),
    ],
)
def test_it_is_the_plain_form(options, x_dtype, is_autocast, close):
    projections = make_three(**options)
    x = torch.randn(3, 11, 8, dtype=x_dtype, requires_grad=True)
    wanted = learned(x, projections)

    def context():
        return torch.autocast("cpu", torch.bfloat16) if is_autocast else nullcontext()

    with context():
        expected = plain_mlp(x, *projections)
    gy = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, wanted, gy)

    with context():
        y = gated_mlp(x, *projections, SILU)
    grads = torch.autograd.grad(y, wanted, gy)

    for ours, theirs in zip((y, *grads), (expected, *expected_grads), strict=True):
        assert ours.dtype == theirs.dtype
        assert far(ours, theirs) <= close


def test_an_input_that_does_not_learn_is_fine():
    projections = make_three()
    x = torch.randn(5, 8)

    gated_mlp(x, *projections, SILU).sum().backward()

    assert all(each.a.grad is not None for each in projections)


def test_only_gate_and_up_are_kept_behind_a_norm():
    projections = make_three(rank=2, bias=False)
    own = {tensor.data_ptr() for tensor in tensors_of(projections)}
    x = torch.randn(100, 8, requires_grad=True)
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        gated_mlp(rms_norm(x, torch.ones(8), NormFormula(1e-6)), *projections, SILU)

    widths = sorted(each.numel() // 100 for at, each in kept.items() if at not in own)
    assert widths == [0, 1, 2, 2, 2, 8, 12, 12]  # weight, rstd, three A x^T, x, gate, up
