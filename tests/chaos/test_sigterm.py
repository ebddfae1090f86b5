"""the short form of sigterm.py"""

from __future__ import annotations

import pytest

from tests.chaos.sigterm import try_many
from tests.chaos.trial import Workshop


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_goes_on_as_if_it_had_not_been(tmp_path):
    workshop = Workshop(tmp_path / "workshop", {"max_steps": 12}).make()
    kinds = ["twice", "workers", "in an evaluation"]

    outcomes = try_many(tmp_path, workshop, kinds, seed=2)

    assert [problem for outcome in outcomes for problem in outcome.problems] == []
