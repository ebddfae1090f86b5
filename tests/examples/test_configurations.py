from __future__ import annotations

from pathlib import Path

import pytest

from luthier.arguments.parse import parse_command_line
from tests.architecture.house import ROOT

CONFIGURATIONS = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.stem)
def test_every_example_parses(file: Path):
    arguments = parse_command_line([str(file)])

    assert arguments.training.output_dir.startswith("saves/")
    assert not arguments.passed_through


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.stem)
def test_every_example_says_how_to_start_it(file: Path):
    start = f"luthier train {file.relative_to(ROOT)}"

    assert any(
        line.startswith("#") and start in line
        for line in file.read_text(encoding="utf-8").splitlines()
    )
