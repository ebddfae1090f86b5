"""the short form of cuts.py"""

from __future__ import annotations

import pytest

from tests.chaos.cuts import try_case
from tests.chaos.trial import Workshop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "steps"),
    [
        ("sft_full", [15]),
        ("pt_packed", [7]),
        ("streaming", [16]),
        ("two workers", [15]),
        ("two ranks", [9]),
    ],
)
def test_a_run_that_is_cut_ends_as_if_it_had_not_been(case, steps, tmp_path):
    workshop = Workshop(tmp_path / "workshop", {"max_steps": 17}).make()

    assert try_case(tmp_path, workshop, case, steps) == []
