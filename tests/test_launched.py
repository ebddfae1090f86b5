"""what the helper that starts ranks promises to the tests that build on it"""

from __future__ import annotations

import os
import sys
import time

import torch
import torch.distributed as dist

from tests.launched import run_command, run_ranks, started_ranks, values_of_ranks


def add_up(start: int) -> tuple[int, int, int, str]:
    dist.init_process_group("gloo")
    sums = torch.tensor(start + dist.get_rank())
    dist.all_reduce(sums)
    return dist.get_rank(), dist.get_world_size(), int(sums), os.environ["LOCAL_RANK"]


def leave(codes: list[int]) -> str:
    rank = int(os.environ["RANK"])
    print(f"rank {rank} leaves", file=sys.stderr)
    if codes[rank]:
        sys.exit(codes[rank])
    return "done"


def sleep() -> None:
    time.sleep(600)


def test_ranks_form_a_group_and_give_values_back():
    assert values_of_ranks(add_up, 3, 10) == [
        (0, 3, 33, "0"),
        (1, 3, 33, "1"),
        (2, 3, 33, "2"),
    ]


def test_exit_codes_and_texts_of_every_rank_come_through():
    ended = run_ranks(leave, 2, [0, 75])

    assert [(each.exit_code, each.value) for each in ended] == [(0, "done"), (75, None)]
    assert ["leaves" in each.stderr for each in ended] == [True, True]


def test_no_rank_outlives_its_context():
    with started_ranks(sleep, 2) as ranks:
        assert all(each.is_alive() for each in ranks.processes)
        ended = ranks.wait(timeout_s=1)

    assert [each.exit_code for each in ended] == [-9, -9]


def test_a_command_is_ended_with_all_it_started():
    script = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(child.pid, flush=True); time.sleep(600)"
    )

    ended = run_command([sys.executable, "-c", script], timeout_s=3)

    assert ended.exit_code == -9
    for _ in range(100):
        try:
            with open(f"/proc/{int(ended.stdout)}/stat") as file:
                state = file.read().split()[2]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("its child still runs")
