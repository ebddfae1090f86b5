"""ranks that start again and agree on a new meeting place"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from luthier.processes.process_group import rendezvous
from tests.launched import free_port

NUM_RANKS = 4


@pytest.fixture
def store():
    server = dist.TCPStore("127.0.0.1", free_port(), None, True, wait_for_workers=False)
    yield server
    del server


def start(store, ranks: range, timeout_s: float, port: int) -> list[int | Exception | None]:
    """What each rank comes to know, or what ends it."""

    def one(rank: int) -> int | Exception | None:
        try:
            timeout = timedelta(seconds=timeout_s)
            return rendezvous(store.clone(), rank, NUM_RANKS, timeout, lambda: port)
        except TimeoutError as problem:
            return problem

    with ThreadPoolExecutor(NUM_RANKS) as pool:
        return list(pool.map(one, ranks))


def test_ranks_stay_where_they_are_at_first_and_all_move_at_every_restart(store):
    everyone = range(NUM_RANKS)

    assert start(store, everyone, 60, 1111) == [None] * NUM_RANKS
    assert start(store, everyone, 60, 2222) == [2222] * NUM_RANKS
    assert start(store, everyone, 60, 3333) == [3333] * NUM_RANKS


@pytest.mark.parametrize("came", [range(1), range(3), range(1, 4)])
def test_a_start_to_which_not_all_came_leaves_nothing_that_misleads(store, came: range):
    ended = start(store, came, 0.5, 1111)
    assert any(isinstance(each, TimeoutError) for each in ended)

    after = start(store, range(NUM_RANKS), 60, 2222)

    assert len(set(after)) == 1
    assert after[0] == (2222 if 0 in came else None)
