"""the short form of ranks.py: one run whose rank is killed, one whose rank is stopped"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from luthier.processes.watchdog import LOST
from tests.chaos import ranks, trial

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> trial.Workshop:
    return trial.Workshop(tmp_path_factory.mktemp("workshop")).make()


@pytest.fixture(scope="module")
def expected(workshop: trial.Workshop) -> Path:
    """The output folder of a run that nothing happens to."""
    folder = workshop.folder / "expected"
    trial.run_well(ranks.arguments(workshop, folder), num_ranks=2)
    return folder


def test_a_launcher_starts_all_ranks_again_when_one_is_killed_and_they_end_the_same(
    workshop, expected, tmp_path
):
    chance = random.Random(0)

    outcome = ranks.restart_by_itself(workshop, tmp_path / "trial", expected, "luthier", chance)

    assert not outcome.problems, "\n".join([*outcome.problems, outcome.log[-5000:]])


def test_ranks_end_when_one_is_stopped_and_the_same_command_ends_the_same(
    workshop, expected, tmp_path
):
    arguments = ranks.arguments(workshop, tmp_path / "run")

    with trial.started(arguments, num_ranks=2) as run:
        wait_for_step(run, tmp_path / "run", 7)
        os.kill(run.processes[1].pid, signal.SIGSTOP)
        ended = run.wait(grace_s=None)

    assert [each.exit_code for each in ended] == [LOST, -signal.SIGKILL]
    assert not ranks.missing_words(ended[0].stderr, victim=1)
    trial.run_well(arguments, num_ranks=2)
    assert not trial.differences(expected, tmp_path / "run")


def wait_for_step(run, folder: Path, step: int) -> None:
    end = time.monotonic() + 120
    while ranks.num_logged(folder) < step:
        assert time.monotonic() < end
        assert run.processes[0].is_alive(), run.stderr(0)
        time.sleep(0.01)
