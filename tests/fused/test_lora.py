from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import linear

from luthier.fused.lora import Projection, lora_linear
from luthier.fused.norm import NormFormula, rms_norm


def plain(x, projection):
    """As peft computes it: the input cast to the adapter's dtype, the sum to the layer's."""
    y = linear(x, projection.weight, projection.bias)
    if projection.a is None:
        return y
    low = linear(linear(x.to(projection.a.dtype), projection.a), projection.b)
    return (y + low * projection.scaling).to(y.dtype)


def make(
    num_in, num_out, rank=3, *, dtype=torch.float32, low_dtype=None, bias=True, is_frozen=True
):
    low_dtype = low_dtype or dtype
    return Projection(
        torch.randn(num_out, num_in, dtype=dtype).requires_grad_(not is_frozen),
        torch.randn(num_out, dtype=dtype).requires_grad_(not is_frozen) if bias else None,
        torch.randn(rank, num_in, dtype=low_dtype).requires_grad_() if rank else None,
        torch.randn(num_out, rank, dtype=low_dtype).requires_grad_() if rank else None,
        0.7,
    )


def tensors_of(projections):
    return [tensor for each in projections for tensor in each.tensors if tensor is not None]


def learned(x, projections):
    return [each for each in (x, *tensors_of(projections)) if each.requires_grad]


def far(ours, theirs):
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


def check(x, projections, close, context=nullcontext):
    wanted = learned(x, projections)
    with context():
        expected = [plain(x, each) for each in projections]
    gys = [torch.randn_like(each) for each in expected]
    expected_grads = torch.autograd.grad(expected, wanted, gys)

    with context():
        ys = lora_linear(x, projections)
    grads = torch.autograd.grad(ys, wanted, gys)

    for ours, theirs in zip((*ys, *grads), (*expected, *expected_grads), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert far(ours, theirs) <= close


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_gradients_agree_with_finite_differences(is_frozen):
    options = {"dtype": torch.float64, "is_frozen": is_frozen}
    projections = [make(5, 4, **options), make(5, 2, bias=False, **options), make(5, 3, 0)]
    projections[2] = make(5, 3, 0, **options)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    wanted = learned(x, projections)

    assert torch.autograd.gradcheck(lambda *_: lora_linear(x, projections), wanted)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5), (2, 1, 3, 5)])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_it_is_the_plain_form_for_any_leading_shape(shape, is_frozen):
    projections = [make(5, 8, is_frozen=is_frozen), make(5, 2, bias=False), make(5, 6, 0)]

    check(torch.randn(*shape, requires_grad=True), projections, 1e-6)


def test_an_input_that_does_not_learn_is_fine():
    check(torch.randn(4, 5), [make(5, 8), make(5, 3)], 1e-6)


def test_an_input_that_is_not_contiguous_is_fine():
    check(torch.randn(5, 3, 4).transpose(0, 2).requires_grad_(), [make(5, 8)], 1e-6)


@pytest.mark.parametrize("low_dtype", [torch.bfloat16, torch.float32])
def test_half_precision_weights_take_adapters_of_both_widths(low_dtype):
    projections = [make(32, 24, dtype=torch.bfloat16, low_dtype=low_dtype) for _ in range(2)]

    check(torch.randn(6, 32, dtype=torch.bfloat16, requires_grad=True), projections, 2**-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_all_products_are_in_its_dtype(dtype, x_dtype):
    projections = [make(32, 24, dtype=dtype, low_dtype=torch.float32) for _ in range(2)]
    x = torch.randn(6, 32, dtype=x_dtype, requires_grad=True)

    check(x, projections, 2**-6, lambda: torch.autocast("cpu", torch.bfloat16))


def test_a_backward_pass_under_autocast_keeps_its_dtypes():
    projections = [make(5, 8)]
    x = torch.randn(4, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(plain(x, projections[0]).sum(), x)
    (y,) = lora_linear(x, projections)

    with torch.autocast("cpu", torch.bfloat16):
        (grad,) = torch.autograd.grad(y.sum(), x)

    assert far(grad, expected) < 1e-6


def test_outputs_may_be_changed_in_place():
    projections = [make(5, 8), make(5, 8)]
    x = torch.randn(3, 4, 5, requires_grad=True)

    first, second = lora_linear(x, projections)
    (expected,) = torch.autograd.grad(3 * plain(x, projections[0]).sum(), x)
    (grad,) = torch.autograd.grad(first.mul_(3).sum() + 0 * second.sum(), x)

    assert far(grad, expected) < 1e-6


def test_an_output_that_nobody_uses_has_no_gradients():
    projections = [make(5, 8), make(5, 3)]
    x = torch.randn(4, 5, requires_grad=True)

    lora_linear(x, projections)[1].sum().backward()

    assert projections[0].a.grad is None
    assert projections[1].a.grad is not None


def test_a_frozen_base_costs_no_gradient_and_the_input_is_kept_once():
    projections = [make(64, 64, 2, bias=False) for _ in range(3)]
    own = {tensor.data_ptr() for tensor in tensors_of(projections)}
    x = torch.randn(100, 64, requires_grad=True)
    kept = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lora_linear(x, projections)

    others = [each for each in kept if each.data_ptr() not in own]
    assert sum(each.numel() for each in others) == x.numel() + 3 * 2 * 100
    assert others[0].data_ptr() == x.data_ptr()


@pytest.mark.parametrize("is_autocast", [False, True])
def test_the_output_of_a_norm_is_made_again_in_place_of_kept(is_autocast):
    projections = [make(64, 64, 2, bias=False), make(64, 8, 2)]
    x, weight = torch.randn(3, 40, 64, requires_grad=True), torch.rand(64)
    wanted = learned(x, projections)
    context = torch.autocast("cpu", torch.bfloat16) if is_autocast else nullcontext()

    def run(normal):
        ys = lora_linear(normal, projections)
        return torch.autograd.grad(sum(y.float().pow(2).sum() for y in ys), wanted)

    kept = []
    with context:
        expected = run(rms_norm(x, weight, NormFormula(1e-6)) * 1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            normal = rms_norm(x, weight, NormFormula(1e-6))
            grads = run(normal)

    assert all(torch.equal(*pair) for pair in zip(grads, expected, strict=True))
    big = {each.data_ptr() for each in kept if each.shape[-1] == 64 and each.numel() == x.numel()}
    assert normal.data_ptr() not in big
