"""the short form of kill9.py"""

from __future__ import annotations

import pytest

from tests.chaos.kill9 import try_many
from tests.chaos.trial import Workshop


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path):
    workshop = Workshop(tmp_path / "workshop", {"max_steps": 10}).make()

    outcomes = try_many(tmp_path, workshop, ["save", "save", "end"], num_cold=0, seed=3)

    assert [problem for outcome in outcomes for problem in outcome.problems] == []
    assert "save" in [kill for outcome in outcomes for kill in outcome.kills]
