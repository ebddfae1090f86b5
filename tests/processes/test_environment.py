"""what a launcher says, and what cannot be true"""

from __future__ import annotations

import pytest

from luthier.processes.environment import (
    DistributedEnvironment,
    distributed_environment,
    environment_problems,
    is_restart,
)


def test_a_process_without_a_launcher_is_alone():
    assert distributed_environment({}) == DistributedEnvironment(0, 1, 0, is_launched=False)
    assert list(environment_problems({})) == []


def test_a_launcher_says_who_a_process_is():
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}

    assert distributed_environment(environment) == DistributedEnvironment(3, 4, 1, is_launched=True)
    assert list(environment_problems(environment)) == []


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
    assert len(list(environment_problems(environment))) == 1


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "1", "RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}]
)
def test_a_world_of_one_needs_no_launcher(environment):
    assert list(environment_problems(environment)) == []


def test_a_restart_is_told_by_its_count():
    assert not is_restart({})
    assert not is_restart({"TORCHELASTIC_RESTART_COUNT": "0"})
    assert is_restart({"TORCHELASTIC_RESTART_COUNT": "1"})
