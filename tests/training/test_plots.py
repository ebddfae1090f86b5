from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.image import imread

from luthier.training.plots import COLOUR, curve_names, smooth, write_plots
from tests.stages.made import make_stage


def history(values: list[float], name: str = "loss") -> list[dict[str, float]]:
    return [{"step": 10 * n, "epoch": n, name: value} for n, value in enumerate(values, 1)]


def count_coloured_pixels(path: Path) -> int:
    colour = np.array(matplotlib.colors.to_rgb(COLOUR))
    return int(np.count_nonzero(np.abs(imread(path)[..., :3] - colour).max(-1) < 0.02))


def test_each_logged_metric_gets_its_picture(tmp_path: Path) -> None:
    log = [
        *history([2.0, 1.5, 1.2]),
        *history([1.9, 1.6], "eval_user_loss"),
        *history([0.4, 0.5], "eval_user_accuracy"),
        {"step": 30, "train_runtime": 3.0},
    ]

    written = write_plots(
        tmp_path / "run", log, curve_names(make_stage("sft", compute_accuracy=True), ["user"])
    )

    assert [path.name for path in written] == [
        "training_loss.png",
        "training_eval_user_loss.png",
        "training_eval_user_accuracy.png",
    ]
    assert sorted(written) == sorted((tmp_path / "run").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_metric_that_was_not_logged_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_plots(tmp_path, history([1.0]), ["eval_loss"]) == []

    assert capsys.readouterr().err.splitlines() == [
        "training_eval_loss.png is not drawn: no eval_loss was logged"
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [[0.0], [1.0], [0.0, 0.0, 0.0], [2.0, math.nan, 1.0]])
def test_single_zero_and_broken_values_are_drawn(tmp_path: Path, values: list[float]) -> None:
    (path,) = write_plots(tmp_path, history(values), ["loss"])
    (empty,) = write_plots(tmp_path / "empty", history([math.nan]), ["loss"])

    assert count_coloured_pixels(path) > count_coloured_pixels(empty) == 0


def test_slashes_in_a_metric_make_no_folder(tmp_path: Path) -> None:
    (path,) = write_plots(tmp_path, history([0.5], "rewards/accuracies"), ["rewards/accuracies"])

    assert path == tmp_path / "training_rewards_accuracies.png"


def test_one_unnamed_set_has_the_plain_names() -> None:
    plain, accurate = make_stage("pt"), make_stage("pt", compute_accuracy=True)
    assert curve_names(plain, [""]) == ["loss", "eval_loss"]
    assert curve_names(accurate, [""]) == ["loss", "eval_loss", "eval_accuracy"]
    assert curve_names(accurate) == ["loss"]


def test_smoothing_keeps_a_constant_and_stays_between_the_extremes() -> None:
    noisy = [1.0 + (-1) ** n for n in range(200)]

    smoothed = smooth(noisy)

    assert smooth([3.0] * 50) == pytest.approx([3.0] * 50)
    assert all(0.0 <= value <= 2.0 for value in smoothed)
    assert np.std(smoothed[20:]) < 0.1 * np.std(noisy)


def test_smoothing_passes_over_what_is_not_finite() -> None:
    assert smooth([2.0, math.nan, math.inf, 2.0]) == pytest.approx([2.0] * 4)
    assert math.isnan(smooth([math.nan])[0])


def test_drawing_leaves_no_global_state(tmp_path: Path) -> None:
    loaded = "matplotlib.pyplot" in sys.modules

    write_plots(tmp_path, history([1.0, 0.5]), ["loss"])

    assert ("matplotlib.pyplot" in sys.modules) == loaded
