"""the account that the log gets"""

from __future__ import annotations

import pytest

from luthier.processes.watch.beat import Beat
from luthier.processes.watch.judge import Sighting, Verdict
from luthier.processes.watch.report import advise, describe


def sighting(rank: int, stack: tuple[str, ...], **more: object) -> Sighting:
    beat = Beat(rank, f"host{rank}", "m", 100 + rank, 9, 12, "training", 3, stack, **more)
    return Sighting(beat, 2.5, 2.5, "running", 50.0)


def test_an_account_says_who_why_where_all_stood_and_what_to_do():
    waits = ("train.py:9 step", "torch/distributed.py:1 all_reduce")
    hangs = ("train.py:7 step", "data.py:3 read")
    seen = {0: sighting(0, waits), 1: sighting(1, hangs), 2: sighting(2, waits)}
    verdict = Verdict("lost", (1,), "rank 1 is lost: it has ended without a word")

    account = describe(verdict, 2, seen, 5, ["Start it again."])

    assert "rank 2 ends the run: rank 1 is lost" in account
    for rank in range(3):
        assert (
            f"rank {rank}  host host{rank}  pid {100 + rank}  step 12  training  2.5 s" in account
        )
    assert account.count("<-- this one") == 1
    assert account.index("main thread of rank 1 ") < account.index("main thread of ranks 0, 2 ")
    assert all(account.count(place) == 1 for place in {*waits, *hangs})
    assert "2 more ranks" in account
    assert account.rstrip().endswith("Start it again.")


def test_an_account_quotes_the_error_that_a_rank_left_with():
    seen = {0: sighting(0, ()), 1: sighting(1, (), state="failed", error="Trace\nValueError: x")}

    account = describe(Verdict("failed", (1,), "rank 1 left"), 0, seen, 2, [])

    assert "What ended rank 1:\n    Trace\n    ValueError: x" in account


@pytest.mark.parametrize(
    "kind",
    ["failed", "lost", "stalled", "apart"],
)
def test_the_advice_says_from_where_a_restart_goes_on(kind):
    alone = advise(Verdict(kind, (), ""), "out/run", ran_out_of_memory=False, environment={})
    launcher = {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "1"}
    again = advise(Verdict(kind, (), ""), "out/run", ran_out_of_memory=False, environment=launcher)

    assert "the same command again" in alone[0]
    assert "out/run" in alone[0]
    assert "the launcher starts all ranks again (time 1 of 1)" in again[0]


def test_the_advice_names_a_want_of_memory_that_the_kernel_has_noticed():
    lost = Verdict("lost", (1,), "")

    told = advise(lost, "run", ran_out_of_memory=True, environment={})

    assert any("want of memory meanwhile" in sentence for sentence in told)
