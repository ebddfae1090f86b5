"""losses of scores, reckoned by hand"""

from __future__ import annotations

import math

import pytest
import torch

from luthier.losses.reward import bradley_terry, uncentered


def test_a_pair_reckoned_by_hand():
    chosen, rejected = torch.tensor([1.5, 0.0, 200.0]), torch.tensor([0.5, 0.0, -200.0])

    losses = bradley_terry(chosen, rejected)

    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(2), 0.0])
    with_margin = bradley_terry(chosen, rejected, torch.tensor([1.0, 0.0, 0.0]))
    assert with_margin.tolist() == pytest.approx([math.log(2), math.log(2), 0.0])
    assert uncentered(chosen, rejected).tolist() == [4.0, 0.0, 0.0]


def test_a_hopeless_pair_has_a_finite_loss_and_a_gradient_of_one():
    rejected = torch.tensor([1e4], requires_grad=True)

    loss = bradley_terry(torch.tensor([0.0]), rejected)
    loss.backward()

    assert loss.item() == pytest.approx(1e4)
    assert rejected.grad is not None
    assert rejected.grad.tolist() == [1.0]
