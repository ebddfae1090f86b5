"""what a launcher says, and what cannot be true"""

from __future__ import annotations

import pytest

from luthier.processes.launched import World, is_restart, launch_problems, launched_world


def test_a_process_without_a_launcher_is_alone():
    assert launched_world({}) == World(0, 1, 0, is_launched=False)
    assert list(launch_problems({})) == []


def test_a_launcher_says_who_a_process_is():
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}

    assert launched_world(environment) == World(3, 4, 1, is_launched=True)
    assert list(launch_problems(environment)) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "one", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"PMI_SIZE": "4"},
        {"SLURM_STEP_NUM_TASKS": "2"},
    ],
)
def test_what_would_train_several_times_alone_is_a_problem(environment):
    assert len(list(launch_problems(environment))) == 1


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "1", "RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}]
)
def test_a_world_of_one_needs_no_launcher(environment):
    assert list(launch_problems(environment)) == []


def test_a_restart_is_told_by_its_count():
    assert not is_restart({})
    assert not is_restart({"TORCHELASTIC_RESTART_COUNT": "0"})
    assert is_restart({"TORCHELASTIC_RESTART_COUNT": "1"})
