"""right ways are taken in half precision and wrong ones found out; see self_check.py"""

from __future__ import annotations

import re

import pytest

from tests.chaos import self_check
from tests.chaos.self_check import FAULTS, METHODS, Case


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", ["llama", "qwen2", "gemma2"])
def test_a_right_way_is_taken(model: str, dtype: str):
    for seed, method in enumerate(METHODS):
        case = Case(model, 2, dtype, method, seed)

        is_taken, said = case.check(case.build())

        assert is_taken, f"{case}: {said}"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str):
    fault, models, methods = FAULTS[name]
    case = Case(models[0], 2, "bfloat16", methods[-1], 0)
    model = case.build()

    with fault():
        is_taken, said = case.check(model)

    assert not is_taken, f"{name} in {case}: {said}"


@pytest.mark.parametrize("name", self_check.ONLY_IN_HALF)
def test_a_fault_that_float32_does_not_have_is_found(name: str):
    fault, models, _ = FAULTS[name]
    case = Case(models[0], 2, "bfloat16", "trained", 0)
    model = case.build()

    with self_check.only_in_half(fault):
        is_taken, said = case.check(model)

    assert not is_taken, f"{name} in {case}: {said}"
    assert re.search("e-0[67] in log-probabilities", said)


def test_both_tables_hold_forty_cases():
    healthy = self_check.healthy_cases(None, with_qwen2=False)
    faulty = [(name, case) for name, case, _ in self_check.faulty_cases()]

    assert len(healthy) == len(set(healthy)) == 40
    assert len(faulty) == len(set(faulty)) == 40
