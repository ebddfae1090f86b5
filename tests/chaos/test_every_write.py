"""a run that is ended between two file operations of a save goes on; see every_write.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import every_write, trial


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("checkpoint", ["write {}/optimizer.pt", "open {}/MANIFEST.json", "rename {}"]),
        ("model", ["write {}/adapter_model.safetensors", "rename {}/adapter_config.json"]),
    ],
)
def test_a_save_that_is_cut_off_leaves_a_run_that_can_go_on(
    tmp_path: Path, part: every_write.Part, words: list[str]
):
    cuts = every_write.Cuts(trial.Workshop(tmp_path / "workshop").make(), part)

    for word in words:
        start, _, end = word.partition(" {}")
        (number,) = [
            at
            for at, what in enumerate(cuts.operations)
            if start in what and ".stage-" in what and what.endswith(end)
        ][:1]
        assert list(cuts.problems(number, torn=start == "write")) == []
