"""the sum of next-token losses against its definition and against transformers"""

import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother

from luthier.losses.next_token import count_correct, next_token_nll


def test_the_sum_is_that_of_minus_log_softmax():
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 3, 10, 7])

    total = next_token_nll(logits, targets)

    expected = -sum(
        torch.log(torch.softmax(logits[i].double(), 0))[t] for i, t in enumerate(targets)
    )
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits = torch.randn(300, 50, generator=torch.Generator().manual_seed(1)).bfloat16()
    targets = torch.arange(300) % 50

    total = next_token_nll(logits, targets)

    assert total.dtype == torch.float32
    assert total.item() == next_token_nll(logits.float(), targets).item()


def test_label_smoothing_is_that_of_transformers():
    logits = torch.randn(1, 6, 13, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([[-100, 4, 2, -100, 9, 1]])
    mean = LabelSmoother(epsilon=0.1)({"logits": logits}, labels, shift_labels=True)

    learned = labels[0, 1:] != -100
    total = next_token_nll(logits[0, :-1][learned], labels[0, 1:][learned], label_smoothing=0.1)

    assert (total / learned.sum()).item() == pytest.approx(mean.item(), rel=1e-6)


def test_no_reads_give_zero_with_a_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)

    total = next_token_nll(logits, torch.zeros(0, dtype=torch.int64))
    total.backward()

    assert total.item() == 0
    assert logits.grad is not None


def test_correct_predictions_are_counted():
    logits = torch.eye(4)

    assert count_correct(logits, torch.tensor([0, 1, 0, 3])).item() == 3
