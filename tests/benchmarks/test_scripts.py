"""every script runs to its end in small, with a row for each comparison and a picture"""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sides, startup
from tests.architecture.house import ROOT

SCRIPTS = sorted(
    file for file in (ROOT / "benchmarks").glob("*.py") if "\n    main()" in file.read_text()
)

SMALL = {
    "checkpoints": ("--models tiny --saves 2", ("ratio", 1)),
    "sft": (
        "--models tiny --dtypes float32 --splits 2x1 --peers trainer --pairs 1 --steps 2",
        ("ratio", 1),
    ),
    "fused": (
        "--models tiny --methods lora --dtypes float32 --tokens 64 --pairs 2",
        ("time_ratio", 6),
    ),
    "generate": (
        "--models tiny --dtypes float32 --ways luthier padded --prompts 4 --pairs 1",
        ("tokens_per_s", 2),
    ),
    "memory": (
        "--models tiny --parts head --head-tokens 64 --vocabulary 1000",
        ("peak_mib", 2),
    ),
    "preference": (
        "--models tiny --stages dpo --reference live --dtypes float32 --splits 2x1 --pairs 1 "
        "--steps 2",
        ("luthier_per_s", 1),
    ),
    "ranks": ("--parts balance --ranks 2 3 --per-rank 1x4", ("slowest_percent", 4)),
    "serve": ("--clients 4 --seconds 1 --gone 2", ("health_p99_ms", 1)),
    "startup": ("--pairs 1", ("ratio", 1)),
    "streaming": ("--parts resume --sizes 1 --steps 2", ("luthier_s", 1)),
    "tokenize": ("--rows 60 --workers 1 --pairs 1", ("ratio", 1)),
    "utilisation": (
        "--models tiny --dtypes float32 --splits 2x1 --steps 1",
        ("products_share", 1),
    ),
}
"""Scripts -> options that make them short, a column of their figures, how many rows they leave."""


def test_every_script_is_run_in_small():
    assert {script.stem for script in SCRIPTS} == set(SMALL)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_what_it_does(script: Path):
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True
    )

    assert "--threads" in done.stdout


def run_here(
    function: str, options: dict[str, Any], threads: int, environment: dict[str, str] | None = None
) -> sides.Outcome:
    """A side in this process, where the libraries are imported already."""
    module, _, name = function.partition(":")
    side = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    value = side(**json.loads(json.dumps(options)))
    return sides.Outcome(json.loads(json.dumps(value)), log="")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch):
    """Sides share this process, but for the one that watches its imports."""
    in_a_process = sides.run

    def run(function: str, *args: Any, **kwargs: Any) -> sides.Outcome:
        is_watched = function == "startup:phases"
        return (in_a_process if is_watched else run_here)(function, *args, **kwargs)

    monkeypatch.setattr(sides, "run", run)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", SMALL)
def test_a_script_keeps_its_figures_and_draws_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words, (column, count) = SMALL[name]
    script = importlib.import_module(f"benchmarks.{name}")
    if name == "startup":
        monkeypatch.setattr(startup, "first_line", lambda *args: 1.0)

    script.main([*words.split(), "--threads", "1", "--results", str(tmp_path)])

    with (tmp_path / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count
    assert all(float(row[column]) >= 0 and row["cpu"] and row["torch"] for row in rows)
    assert (tmp_path / f"{name}.png").stat().st_size > 0


def test_the_first_line_of_a_process_is_timed():
    options = startup.parse(["--threads", "1"])
    words = [sys.executable, "-c", "import time; time.sleep(0.2); print('ready to play')"]

    assert startup.first_line(words, "ready", options) >= 0.2


def test_a_process_without_the_line_shows_what_it_said():
    words = [sys.executable, "-c", "print('out of tune')"]

    with pytest.raises(SystemExit, match="out of tune"):
        startup.first_line(words, "ready", startup.parse([]))
