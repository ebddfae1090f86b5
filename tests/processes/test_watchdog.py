"""ranks in processes of their own, one of which comes to harm"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack

import pytest

from luthier.processes.watchdog import LOST
from tests.launched import Ended, Ranks, started_ranks
from tests.processes import watchdog_lives as lives

NUM_RANKS = 3

HARM: Mapping[str, tuple[int, tuple[signal.Signals, ...]]] = {
    "killed": (1, (signal.SIGKILL,)),
    "killed, the others told to end": (1, (signal.SIGKILL,)),
    "killed, who keeps the store": (0, (signal.SIGKILL,)),
    "stopped": (1, (signal.SIGSTOP,)),
    "stopped, who keeps the store": (0, (signal.SIGSTOP,)),
    "told to end": (1, (signal.SIGTERM,)),
}
"""What a test does to which rank, once all are half way; everything else a rank does to itself."""


def fates(*kinds: str, num_steps: int = 10_000) -> dict[str, list[Ended]]:
    """How the ranks of several runs ended, all of them run at the same time."""
    with ExitStack() as stack:
        worlds = {
            kind: stack.enter_context(started_ranks(lives.live, NUM_RANKS, kind, num_steps))
            for kind in kinds
        }
        for kind, ranks in worlds.items():
            wait_until_half_way(ranks)
            victim, signals = HARM.get(kind, (0, ()))
            for number in signals:
                os.kill(ranks.processes[victim].pid, number)
            if kind == "killed, the others told to end":
                for rank in {*range(NUM_RANKS)} - {victim}:
                    os.kill(ranks.processes[rank].pid, signal.SIGTERM)
        return {kind: ranks.wait(grace_s=None) for kind, ranks in worlds.items()}


def wait_until_half_way(ranks: Ranks) -> None:
    end = time.monotonic() + 120
    while not all(lives.READY in ranks.stderr(rank) for rank in range(NUM_RANKS)):
        assert time.monotonic() < end
        time.sleep(0.05)


def codes(ended: list[Ended]) -> list[int]:
    return [each.exit_code for each in ended]


def account_of(ended: Ended) -> str:
    """What a rank wrote of the end, once, with all ranks' stacks."""
    _, found, account = ended.stderr.partition(" ends the run: ")
    assert found
    assert " ends the run: " not in account
    for rank in range(NUM_RANKS):
        assert f"rank {rank}  host " in account
    assert "_work" in account
    assert "What to do:" in account
    return account


@pytest.mark.slow
def test_no_rank_outlives_one_that_is_killed_or_fails_or_is_told_to_end():
    ended = fates(
        "killed",
        "killed, the others told to end",
        "killed, who keeps the store",
        "told to end",
        "raise",
        "raise, who keeps the store",
    )

    for kind in ("killed", "killed, the others told to end"):
        assert codes(ended[kind]) == [LOST, -signal.SIGKILL, LOST], kind
        for rank in (0, 2):
            assert account_of(ended[kind][rank]).startswith("rank 1 is lost"), kind
    assert codes(ended["killed, who keeps the store"]) == [-signal.SIGKILL, LOST, LOST]
    assert account_of(ended["killed, who keeps the store"][2]).startswith("rank 0 is lost")
    assert codes(ended["told to end"]) == [LOST, -signal.SIGTERM, LOST]
    assert codes(ended["raise"]) == [LOST, 1, LOST]
    assert codes(ended["raise, who keeps the store"]) == [1, LOST, LOST]
    assert "rank 0 left the run: ValueError" in ended["raise, who keeps the store"][1].stderr
    account = account_of(ended["raise"][0])
    assert account.startswith("rank 1 left the run: ValueError: row 17 is no row")
    assert "_meet_fate" in account
    assert "secret@" not in account
    assert "ends the run" not in ended["raise"][1].stderr


@pytest.mark.slow
def test_no_rank_outlives_one_that_is_stopped_or_hangs():
    ended = fates("stopped", "stopped, who keeps the store", "hang", "deaf")

    assert codes(ended["stopped"]) == [LOST, -signal.SIGKILL, LOST]
    assert codes(ended["stopped, who keeps the store"]) == [-signal.SIGKILL, LOST, LOST]
    assert codes(ended["hang"]) == [LOST, LOST, LOST]
    assert codes(ended["deaf"]) == [LOST, -signal.SIGKILL, LOST]
    assert "it has been stopped for" in account_of(ended["stopped"][2])
    assert account_of(ended["stopped, who keeps the store"][1]).startswith("rank 0 is lost")
    assert "rank 1 did not come to an exchange" in account_of(ended["hang"][0])
    for rank in range(NUM_RANKS):
        assert "_meet_fate" in account_of(ended["hang"][rank])
    assert "rank 1 is lost: it has not been heard of" in account_of(ended["deaf"][0])


@pytest.mark.slow
def test_a_slow_rank_and_a_busy_one_are_waited_for_and_ranks_that_are_done_end_well():
    ended = fates("well", "slow", "deaf for a while", num_steps=40)

    for kind, ranks in ended.items():
        assert codes(ranks) == [0, 0, 0], kind
        assert [each.value for each in ranks] == ["well"] * NUM_RANKS
        assert not any(" ends the run: " in each.stderr for each in ranks)
