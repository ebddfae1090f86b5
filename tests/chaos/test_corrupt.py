"""a damaged checkpoint is named and the one before taken, to the same end; see corrupt.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import corrupt, trial


@pytest.mark.slow
def test_damage_is_named_and_leads_to_the_same_end(tmp_path: Path):
    damaged = corrupt.Damaged(trial.Workshop(tmp_path / "workshop").make())

    names = damaged.files()
    assert {"optimizer.pt", "adapter_model.safetensors", "MANIFEST.json"} <= set(names)
    assert list(damaged.problems("optimizer.pt", corrupt.flipped)) == []
    assert list(damaged.problems("MANIFEST.json", corrupt.missing)) == []
    assert list(damaged.problems_when_all_are_damaged()) == []
    assert list(damaged.problems_when_a_named_one_is_damaged()) == []
