"""the watch over a step's numbers, without a run around it"""

import math

import pytest
import torch
from torch import nn

from luthier.batching.steps import StepBuilder
from luthier.errors import NonFiniteError
from luthier.example import ExampleSet
from luthier.training.diagnosis import Finding, Search, are_finite, describe, first_nonfinite
from luthier.training.nonfinite import MOST_OVERFLOWS, NonFiniteGuard, refuse_nonfinite
from tests.batching.test_steps import make_dataset


@pytest.fixture
def search():
    return Search(nn.Linear(2, 1), None, 0, share_prefixes=False)


def make_guard(policy="stop", *, has_scaler=False):
    guard = NonFiniteGuard(
        policy, has_scaler=has_scaler, name_rows=lambda rows: [f"rows.jsonl:{n}" for n in rows]
    )
    builder = StepBuilder(ExampleSet(make_dataset(4)), 0, 8, layout="tree")
    guard.begin(builder(range(4)), torch.device("cpu"))
    return guard


def test_a_finite_loss_and_its_gradient_stay_bit_by_bit():
    guard = make_guard()
    for value in (0.1, 1e-30, 3e38):
        weight = torch.tensor(value, requires_grad=True)

        loss = guard.watched(weight * 3.7e-2)
        loss.backward()

        assert loss.item() == (weight * 3.7e-2).item()
        assert weight.grad == torch.tensor(3.7e-2)


@pytest.mark.parametrize("added", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_none_spoils_a_finite_gradient(added):
    weight = torch.tensor(2.0, requires_grad=True)

    make_guard().watched(weight * 3 + added).backward()

    assert weight.grad.isnan()


@pytest.mark.parametrize("norm", [math.nan, math.inf, torch.tensor(math.nan)])
def test_a_norm_that_is_none_ends_the_run(norm, search):
    guard = make_guard()
    assert guard.accepts(torch.tensor(1.0), 1, search)
    assert guard.accepts(None, 1, search)

    with pytest.raises(NonFiniteError, match="step 2 "):
        guard.accepts(norm, 2, search)


def test_three_steps_in_a_row_are_left_out_and_a_good_one_begins_anew(search):
    guard = make_guard("skip")

    for number, norm in enumerate([math.nan, math.inf, 1.0, math.nan, math.nan, math.nan], 1):
        assert guard.accepts(norm, number, search) is (norm == 1.0)
    with pytest.raises(NonFiniteError, match="3 steps before it were left out"):
        guard.accepts(math.nan, 7, search)

    assert guard.metrics() == {"train_skipped_steps": 5}
    again = make_guard("skip")
    again.restore(guard.state())
    assert again.metrics() == guard.metrics()


def test_overflows_of_fp16_are_left_to_the_scaler_until_they_go_on(search):
    guard = make_guard(has_scaler=True)
    for number in range(MOST_OVERFLOWS):
        assert guard.accepts(math.inf, number + 1, search)
    assert guard.accepts(1.0, 0, search)
    for number in range(MOST_OVERFLOWS):
        assert guard.accepts(math.inf, number + 1, search)

    with pytest.raises(NonFiniteError, match="fp16 overflows at every scale"):
        guard.accepts(math.inf, 99, search)


def test_a_loss_that_is_none_is_no_overflow(search):
    guard = make_guard(has_scaler=True)
    guard.watched(torch.tensor(math.nan))

    with pytest.raises(NonFiniteError, match="the loss of micro-batch 1 of"):
        guard.accepts(math.inf, 1, search)


def test_only_magnitudes_are_looked_at_so_that_large_weights_are_no_false_alarm():
    large = torch.full((1000,), 6e4, dtype=torch.float16)
    assert are_finite([large, torch.zeros(0), torch.ones(3, dtype=torch.int64)])
    assert are_finite([torch.full((1000,), 3e38)])
    for wrong in (math.nan, math.inf, -math.inf):
        large[7] = wrong
        assert not are_finite([torch.ones(2), large])


def test_frozen_weights_are_told_but_only_trained_ones_keep_from_saving():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    model[1].requires_grad_(True)
    model[0].weight.data[0, 0] = math.inf
    refuse_nonfinite(model, 3)
    assert first_nonfinite(model) == "0.weight (1 of 4 numbers, infinite)"

    model[1].bias.data[:] = math.nan
    with pytest.raises(NonFiniteError, match="after step 3 "):
        refuse_nonfinite(model, 3)


def test_findings_of_ranks_become_lines():
    findings = [
        Finding(0, num_micro_batches=2, rows=(1, 2)),
        Finding(1, loss=math.inf, micro_batch=2, num_micro_batches=3, rows=(4,), is_alone=True),
        Finding(2, micro_batch=1, num_micro_batches=1, gradients=tuple("abcde"), rows=range(30)),
        Finding(3, weight="w (1 of 2 numbers, NaN)", num_micro_batches=2),
    ]

    told = describe(findings, lambda rows: [f"f:{n}" for n in rows]).splitlines()

    assert told[:3] == [
        "  rank 1: the loss of micro-batch 2 of 3 is inf",
        "  rank 1: these rows, each of them alone:",
        "    f:4",
    ]
    assert told[3].endswith("a finite loss and a gradient that is not: a, b, c and 2 more")
    assert told[-2:] == [
        "    and 22 more",
        "  rank 3: the weights were not finite already: w (1 of 2 numbers, NaN)",
    ]
