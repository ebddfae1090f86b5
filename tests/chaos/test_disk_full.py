"""a full disk costs saves and no checkpoint; see disk_full.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import disk_full, trial


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint_and_a_run_that_can_go_on(tmp_path: Path):
    workshop = trial.Workshop(tmp_path / "workshop").make()

    with disk_full.small_disk(tmp_path / "disk"):
        full = disk_full.FullDisk(workshop, tmp_path / "disk")
        assert list(full.problems("within", 20_000, 3)) == []
        assert list(full.problems("within", 9_000, 1)) == []
