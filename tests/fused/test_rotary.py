from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from luthier.fused.layers import rotate


def inputs(dtype, angle_dtype):
    torch.manual_seed(0)
    # as in a model: (B, T, A, D) in memory, seen as (B, A, T, D)
    x = torch.randn(2, 5, 3, 8, dtype=dtype).transpose(1, 2).requires_grad_()
    cos, sin = torch.randn(2, 2, 1, 5, 8, dtype=angle_dtype)
    return x, cos, sin


def test_gradients_agree_with_finite_differences():
    x, cos, sin = inputs(torch.float64, torch.float64)

    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), x)


@pytest.mark.parametrize(
    ("dtype", "angle_dtype", "close"),
    [
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.bfloat16, 2**-6),
        (torch.bfloat16, torch.float32, 2**-6),
    ],
)
def test_it_is_the_plain_rotation(dtype, angle_dtype, close):
    x, cos, sin = inputs(dtype, angle_dtype)
    expected, _ = apply_rotary_pos_emb(x, x, cos[:, 0], sin[:, 0])
    gy = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, x, gy, retain_graph=True)

    y = rotate(x, cos, sin)
    (grad,) = torch.autograd.grad(y, x, gy)

    for ours, theirs in ((y, expected), (grad, expected_grad)):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).float().norm() <= close * theirs.float().norm()


def test_the_order_in_memory_stays():
    x, cos, sin = inputs(torch.float32, torch.float32)

    assert rotate(x, cos, sin).stride() == x.stride()
