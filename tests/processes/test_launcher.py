"""how many processes a machine starts, and what torch's launcher is told"""

from __future__ import annotations

import os

import pytest
from torch.distributed.run import config_from_args, parse_args

from luthier.arguments.parse import parse_dict
from luthier.errors import ArgumentsError
from luthier.processes.environment import count_cores
from luthier.processes.launcher import find_launch

RUN = {"model_name_or_path": "m", "output_dir": "o", "do_eval": True, "eval_dataset": "d"}


def launch(environment=None, *, accelerators=0, **values):
    return find_launch(parse_dict(RUN | values), environment or {}, lambda: accelerators)


def told(found, command=("train",), monkeypatch=None):
    """What torch's own parser makes of the words."""
    return parse_args(found.words(list(command)))


@pytest.fixture(autouse=True)
def no_word_from_outside(monkeypatch):
    for name in [*os.environ]:
        if name.startswith("PET_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_machine_with_one_device_or_none_starts_nothing():
    assert launch() is None
    assert launch(accelerators=1) is None
    assert launch(accelerators=4, use_cpu=True) is None


def test_every_accelerator_gets_a_process():
    assert launch(accelerators=4).nproc == 4
    assert launch(accelerators=4, nproc=2).nproc == 2
    assert launch({"NPROC_PER_NODE": "3"}, accelerators=4).nproc == 3
    assert launch({"NPROC_PER_NODE": "3"}, accelerators=4, nproc=2).nproc == 2


def test_a_cpu_takes_as_many_processes_as_are_asked_for():
    assert launch(nproc=3).nproc == 3
    assert launch(nproc=3, use_cpu=True, accelerators=1).nproc == 3


def test_more_processes_than_accelerators_are_refused():
    with pytest.raises(ArgumentsError, match="3 processes are asked for, and 2 accelerators"):
        launch(nproc=3, accelerators=2)


def test_a_launched_process_launches_nothing():
    environment = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "FORCE_TORCHRUN": "1"}

    assert launch(environment, accelerators=4, nproc=2, max_restarts=1) is None


@pytest.mark.parametrize("said", [{"FORCE_TORCHRUN": "1"}, {"MAX_RESTARTS": "2"}])
def test_one_process_is_launched_where_it_is_asked_for(said):
    assert launch(said).nproc == 1


def test_restarts_come_from_the_arguments_or_the_environment():
    assert told(launch({"MAX_RESTARTS": "2"})).max_restarts == 2
    assert told(launch({"MAX_RESTARTS": "2"}, max_restarts=1)).max_restarts == 1


def test_deepspeed_gets_its_group_even_for_one_process():
    assert launch(deepspeed={"zero_optimization": {"stage": 2}}).nproc == 1


def test_the_words_of_the_command_arrive_as_they_are():
    command = ["train", "my file.yaml", "--nproc", "2", "a=${local_rank}$$", "--standalone", "--"]

    config, _, words = config_from_args(told(launch(nproc=2), command))

    assert config.nproc_per_node == 2
    assert words[:3] == ["-u", "-m", "luthier"]
    assert [word.replace("$$", "$") for word in words[3:]] == command


def test_processes_of_one_machine_meet_on_it():
    found = launch(nproc=2)
    args = told(found)

    assert args.standalone
    assert args.local_addr == "127.0.0.1"
    assert found.environment["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_port_that_was_named_is_used():
    config, _, _ = config_from_args(told(launch({"MASTER_PORT": "23456"}, nproc=2)))

    assert config.rdzv_endpoint == "127.0.0.1:23456"


def test_machines_meet_at_the_address_of_the_first():
    environment = {
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "23456",
    }

    found = launch(environment, accelerators=8)
    config, _, _ = config_from_args(told(found))

    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 8)
    assert config.rdzv_endpoint == "10.0.0.1:23456"
    assert config.rdzv_configs["rank"] == 1
    assert "GLOO_SOCKET_IFNAME" not in found.environment
    assert "machine 1 of 2" in found.notes[0]


def test_machines_that_may_come_and_go_meet_at_their_rendezvous():
    environment = {
        "RDZV_ID": "job 7",
        "RDZV_ENDPOINT": "10.0.0.1:29400",
        "MIN_NNODES": "2",
        "MAX_NNODES": "4",
        "MAX_RESTARTS": "3",
    }

    config, _, _ = config_from_args(told(launch(environment, accelerators=8)))

    assert (config.min_nodes, config.max_nodes, config.max_restarts) == (2, 4, 3)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("c10d", "10.0.0.1:29400")
    assert config.run_id == "job 7"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"NNODES": "2"}, "NODE_RANK and MASTER_ADDR not set"),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"}, "numbered from 0"),
        ({"NNODES": "two"}, "NNODES in the environment is 'two'"),
        ({"NPROC_PER_NODE": "auto"}, "NPROC_PER_NODE in the environment is 'auto'"),
        ({"RDZV_ID": "1", "NNODES": "2"}, "RDZV_ENDPOINT=HOST:PORT"),
        ({"RDZV_ENDPOINT": "a:1", "MIN_NNODES": "3", "MAX_NNODES": "2"}, "1 <= MIN <= MAX"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "NNODES=\\$WORLD_SIZE NODE_RANK=\\$RANK"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "2 copies of this command were started"),
    ],
)
def test_an_environment_that_cannot_be_is_told(said, problem):
    with pytest.raises(ArgumentsError, match=problem):
        launch(said, nproc=2)


def test_where_world_size_counts_machines_it_need_not_name_processes():
    environment = {"WORLD_SIZE": "2", "RANK": "1", "NNODES": "2", "NODE_RANK": "1"}

    assert launch({**environment, "MASTER_ADDR": "a"}, nproc=2).nproc == 2


def test_processes_share_the_cores_and_say_so():
    found = launch(nproc=2)

    assert found.environment["OMP_NUM_THREADS"] == str(max(count_cores() // 2, 1))
    assert any(note.startswith("OMP_NUM_THREADS = ") for note in found.notes)


def test_threads_that_were_said_stay():
    found = launch({"OMP_NUM_THREADS": "7"}, nproc=2)

    assert "OMP_NUM_THREADS" not in found.environment
    assert not any("OMP_NUM_THREADS" in note for note in found.notes)
