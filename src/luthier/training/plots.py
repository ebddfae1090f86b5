"""The log of a run -> PNG curves, raw and smoothed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from luthier import console
from luthier.stages.stage import Stage

COLOUR = "#1f6f8b"

FEW = 15
"""Points below which each gets a dot of its own."""


def curve_names(stage: Stage, eval_names: Iterable[str] = ()) -> list[str]:
    """The metrics that a run draws: those of its training, and of its evaluation sets by name."""
    names = ["loss", *stage.train_metrics]
    for eval_name in eval_names:
        prefix = f"eval_{eval_name}_" if eval_name else "eval_"
        names += [f"{prefix}{name}" for name in ("loss", *stage.eval_metrics)]
    return names


def write_plots(
    folder: Path, log_history: Sequence[Mapping[str, float]], names: Iterable[str]
) -> list[Path]:
    """Draws `training_NAME.png` for each metric of a log, or says that it was never logged."""
    written = []
    for name in names:
        points = [(log["step"], log[name]) for log in log_history if name in log and "step" in log]
        path = folder / f"training_{name.replace('/', '_')}.png"
        if points:
            _write(_draw(name, points), path)
            written.append(path)
        else:
            console.info(f"{path.name} is not drawn: no {name} was logged")
    if written:
        console.info("curves: " + ", ".join(str(path) for path in written))
    return written


def smooth(values: Sequence[float]) -> list[float]:
    """An exponential moving average over about a tenth of the series, free of start-up bias.

    The weight of the past is a = 1 - 2 / (span + 1) with span = 1 + n / 10 for n values, so that a
    point weighs half as much as one 0.35 span later; each average is divided by the weights seen so
    far (Kingma & Ba 2015, section 3, do the same for Adam's moments). Values that are not finite
    are passed over.
    """
    keep = 1 - 2 / (2 + len(values) / 10)
    total = weight = 0.0
    averages = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        averages.append(total / weight if weight else math.nan)
    return averages


def _draw(name: str, points: Sequence[tuple[float, float]]) -> Figure:
    steps, values = zip(*points, strict=True)
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, values, color=COLOUR, alpha=0.35, linewidth=1, label="logged")
    if len(points) < FEW:
        axes.plot(steps, values, color=COLOUR, linestyle="none", marker="o", markersize=4)
    if len(points) > 1:
        axes.plot(steps, smooth(values), color=COLOUR, linewidth=2, label="smoothed")
    else:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step", ylabel=name, title=f"{name} by optimizer step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        FigureCanvasAgg(figure).print_png(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
