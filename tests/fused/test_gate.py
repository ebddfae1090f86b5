from __future__ import annotations

import pytest
import torch

from luthier.fused import norm as norms
from luthier.fused.mlp import ACTIVATIONS, gate

PLAIN = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch):
    monkeypatch.setattr(norms, "NUMBERS_PER_THREAD", 16)


def halves(*shape, dtype):
    torch.manual_seed(0)
    both = torch.randn(*shape, dtype=dtype, requires_grad=True)
    return both, both.chunk(2, dim=-1)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_agree_with_finite_differences(name):
    both, _ = halves(3, 20, 10, dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda x: gate(*x.chunk(2, dim=-1), ACTIVATIONS[name]), both)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-6)])
def test_it_is_the_plain_product(name, dtype, close):
    both, (left, right) = halves(40, 24, dtype=dtype)
    expected = PLAIN[name](left) * right
    gy = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, both, gy, retain_graph=True)

    y = gate(left, right, ACTIVATIONS[name])
    (grad,) = torch.autograd.grad(y, both, gy)

    assert torch.equal(y, expected)
    assert (grad - expected_grad).float().norm() <= close * expected_grad.float().norm()
