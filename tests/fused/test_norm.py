from __future__ import annotations

import pytest
import torch

from luthier.fused import norm as norms
from luthier.fused.norm import NormFormula, norm_origin, rms_norm

FORMULAS = (
    NormFormula(1e-6),
    NormFormula(1e-5, casts_first=False),
    NormFormula(1e-6, shift=1.0, casts_first=False),
)


def plain(x, weight, formula):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + formula.eps)
    if formula.casts_first:
        return (formula.shift + weight) * normal.to(x.dtype)
    return ((formula.shift + weight.to(wide.dtype)) * normal).to(x.dtype)


def inputs(*shape, dtype=torch.float32, weight_dtype=None):
    torch.manual_seed(0)
    x = torch.randn(*shape, dtype=dtype, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=weight_dtype or dtype, requires_grad=True)
    return x, weight


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch):
    monkeypatch.setattr(norms, "NUMBERS_PER_THREAD", 16)


@pytest.mark.parametrize("formula", FORMULAS)
def test_gradients_agree_with_finite_differences(formula):
    x, weight = inputs(3, 7, 5, dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, formula), (x, weight))


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(
    ("dtype", "weight_dtype", "close"),
    [
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.bfloat16, 2**-6),
        (torch.bfloat16, torch.float32, 2**-6),
    ],
)
def test_it_is_the_plain_norm_in_each_dtype(formula, dtype, weight_dtype, close):
    x, weight = inputs(2, 40, 33, dtype=dtype, weight_dtype=weight_dtype)
    expected = plain(x, weight, formula)
    gy = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, (x, weight), gy)

    y = rms_norm(x, weight, formula)
    grads = torch.autograd.grad(y, (x, weight), gy)

    assert y.dtype == expected.dtype
    for ours, theirs in zip((y, *grads), (expected, *expected_grads), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).float().norm() <= close * theirs.float().norm()


def test_a_frozen_weight_gets_no_gradient_and_a_frozen_input_none():
    x, weight = inputs(4, 5)

    rms_norm(x, weight.detach(), FORMULAS[0]).sum().backward()
    assert x.grad is not None
    rms_norm(x.detach(), weight, FORMULAS[0]).sum().backward()
    assert weight.grad is not None


def test_an_input_that_is_not_contiguous_gives_the_same():
    x, weight = inputs(6, 4, 5)
    formula = FORMULAS[0]

    y = rms_norm(x.transpose(0, 1), weight, formula)

    assert torch.allclose(y, plain(x.transpose(0, 1), weight, formula), atol=1e-6)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_is_made_again_bit_for_bit(formula, dtype):
    x, weight = inputs(50, 33, dtype=dtype, weight_dtype=torch.float32)

    y = rms_norm(x, weight, formula)

    assert torch.equal(norm_origin(y).remake(), y)


def test_a_changed_output_has_no_origin():
    x, weight = inputs(4, 5)
    y = rms_norm(x, weight, FORMULAS[0])

    y.mul_(2)

    assert norm_origin(y) is None
    assert norm_origin(y * 2) is None
    assert torch.allclose(y, 2 * plain(x, weight, FORMULAS[0]), atol=1e-6)


def test_outside_of_a_graph_nothing_is_remembered():
    x, weight = inputs(4, 5)

    with torch.no_grad():
        assert norm_origin(rms_norm(x, weight, FORMULAS[0])) is None
