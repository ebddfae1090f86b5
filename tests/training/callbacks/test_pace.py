from __future__ import annotations

import pytest

from luthier.training.callbacks.pace import WINDOW, Pace, clock


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_only_steps_of_this_process_count_after_a_resume() -> None:
    now = Clock()
    pace = Pace(900, now)

    now.seconds = 20.0
    pace.step_ended(910)

    assert pace.remaining_s(1000) == pytest.approx(180.0)  # 90 steps at 2 s, not at 0.02 s
    assert pace.elapsed_s() == 20.0


def test_nothing_is_foretold_before_the_first_step() -> None:
    assert Pace(10, Clock()).remaining_s(20) is None


def test_the_estimate_follows_the_last_steps() -> None:
    now = Clock()
    pace = Pace(0, now)

    for step in range(1, 3 * WINDOW + 1):
        now.seconds += 100.0 if step == 1 else 1.0
        pace.step_ended(step)

    assert pace.remaining_s(400) == pytest.approx(100.0)


def test_nothing_is_left_at_the_end() -> None:
    now = Clock()
    pace = Pace(0, now)
    now.seconds = 1.0
    pace.step_ended(10)

    assert pace.remaining_s(10) == 0.0


def test_durations_are_read_as_hours_minutes_seconds() -> None:
    assert clock(83.9) == "0:01:23"
    assert clock(90_000) == "1 day, 1:00:00"
