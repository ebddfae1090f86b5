from __future__ import annotations

import re
from pathlib import Path

import pytest

from luthier.arguments.parse import parse_command_line
from tests.architecture.house import ROOT

CONFIGURATIONS = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def command_of(file: Path) -> str:
    """The word of the command that the file's comments start it with."""
    start = re.compile(rf"^#.*luthier (\w+) {re.escape(str(file.relative_to(ROOT)))}", re.M)
    found = start.search(file.read_text(encoding="utf-8"))
    assert found is not None, f"{file.name} does not say how to start it"
    return found[1]


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.stem)
def test_every_example_parses(file: Path):
    command = command_of(file)

    arguments = parse_command_line(
        [str(file)], purpose=command if command in ("train", "export") else "chat"
    )

    places = [arguments.training.output_dir, arguments.exporting.export_dir]
    assert all(place.startswith("saves/") for place in places if place is not None)
    assert not arguments.passed_through
