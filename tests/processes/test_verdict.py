"""what is known of the ranks, without threads or stores; what is made and told of it"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.processes.heartbeat import CUT_OFF, Heartbeat, PeerStatus
from luthier.processes.verdict import Limits, Verdict, advise, describe, judge, judge_cut

LIMITS = Limits.within(1800)


def heartbeat(rank: int, machine: str = "a", **more: object) -> Heartbeat:
    told = Heartbeat(rank, machine, machine, 100 + rank, 7, 3, "training", 5, ("train.py:1 step",))
    return replace(told, **more)


def well(rank: int, machine: str = "a") -> PeerStatus:
    return PeerStatus(heartbeat(rank, machine), 0.5, 0.5, "running", 100.0)


def unseen(rank: int, machine: str, heard_s: float) -> PeerStatus:
    return PeerStatus(heartbeat(rank, machine), heard_s, heard_s)


def test_ranks_that_live_and_get_on_are_left_alone():
    assert judge({rank: well(rank) for rank in range(4)}, LIMITS) is None


def test_a_process_that_is_gone_is_lost_at_once():
    verdict = judge({0: well(0), 1: replace(well(1), process="gone", process_s=0.0)}, LIMITS)

    assert verdict is not None
    assert (verdict.kind, verdict.ranks) == ("lost", (1,))
    assert "rank 1" in verdict.why


def test_a_process_that_was_done_may_be_gone():
    done = PeerStatus(heartbeat(1, state="done"), 900.0, 9000.0, "gone", 900.0)

    assert judge({0: well(0), 1: done}, LIMITS) is None


@pytest.mark.parametrize("ddp_timeout_s", [1, 10, 30, 600, 1800])
def test_a_stopped_process_is_lost_after_ten_seconds_to_a_minute(ddp_timeout_s: float):
    limits = Limits.within(ddp_timeout_s)
    stopped = replace(well(1), heard_s=5.0, process="stopped", process_s=limits.stopped_s)

    assert 10 <= limits.stopped_s <= 60
    assert judge({0: well(0), 1: stopped}, limits) is None
    verdict = judge({0: well(0), 1: replace(stopped, process_s=limits.stopped_s + 1)}, limits)
    assert verdict is not None
    assert verdict.ranks == (1,)


def test_a_silent_rank_whose_process_runs_has_the_time_of_a_collective():
    silent = replace(well(1), heard_s=1800.0, still_s=1800.0)

    assert judge({0: well(0), 1: silent}, LIMITS) is None
    assert judge({0: well(0), 1: replace(silent, heard_s=1806.0)}, LIMITS) is not None


def test_a_silent_rank_of_another_machine_is_lost_unless_a_rank_beside_it_speaks():
    alone = {0: well(0), 8: unseen(8, "b", 301.0), 9: unseen(9, "b", 301.0)}
    verdict = judge(alone, LIMITS)
    assert verdict is not None
    assert verdict.ranks == (8, 9)

    beside = alone | {9: unseen(9, "b", 1.0)}
    assert judge(beside, LIMITS) is None


def test_ranks_that_wait_for_a_long_save_or_a_compilation_are_left_alone():
    waiting = replace(well(1), still_s=5000.0)
    busy = replace(well(0), still_s=2.0)

    assert judge({0: busy, 1: waiting}, LIMITS) is None


def test_ranks_that_all_stand_still_have_stalled_a_little_after_the_time_of_a_collective():
    still = {rank: replace(well(rank), still_s=1804.0) for rank in range(2)}
    assert judge(still, LIMITS) is None

    verdict = judge({rank: replace(seen, still_s=1806.0) for rank, seen in still.items()}, LIMITS)
    assert verdict is not None
    assert verdict.kind == "stalled"


def test_no_stall_is_found_before_the_first_step():
    starting = {
        rank: PeerStatus(heartbeat(rank, doing="starting"), 0.5, 9999.0, "running", 9999.0)
        for rank in range(2)
    }

    assert judge(starting, LIMITS) is None


def test_an_error_of_a_rank_goes_before_its_loss_and_is_quoted():
    failed = PeerStatus(
        heartbeat(1, state="failed", error="Traceback ...\nValueError: row 17"),
        99.0,
        99.0,
        "gone",
        99.0,
    )

    verdict = judge({0: well(0), 1: failed}, LIMITS)

    assert verdict is not None
    assert (verdict.kind, verdict.ranks) == ("failed", (1,))
    assert "ValueError: row 17" in verdict.why


def test_of_an_exchange_that_failed_the_rank_that_did_not_come_is_named():
    cut = {rank: replace(well(rank), heartbeat=heartbeat(rank, doing=CUT_OFF)) for rank in (0, 2)}

    assert judge_cut(cut | {1: well(1)}, "timed out").ranks == (1,)
    assert judge_cut(cut, "timed out") == Verdict(
        "apart", (), "the ranks live, but an exchange between them failed: timed out"
    )


def test_a_stall_is_told_before_a_collective_ends_its_process_and_after_it_raises_an_error():
    assert Limits.within(1800, is_abrupt=True).stalled_s < 1800 < LIMITS.stalled_s


@given(st.floats(1, 1e6), st.booleans())
def test_no_living_rank_is_given_up_in_less_than_ten_seconds(ddp_timeout_s: float, is_abrupt: bool):
    limits = Limits.within(ddp_timeout_s, is_abrupt=is_abrupt)

    for each in (limits, limits.once_talk_failed()):
        assert min(each.stopped_s, each.silent_s, each.stalled_s) >= 10
        assert each.stopped_s <= each.silent_s


def test_a_verdict_survives_its_text():
    verdict = Verdict("lost", (1, 3), 'rank "1" …')

    assert Verdict.from_json(verdict.to_json()) == verdict


# the account that the log gets


def status(rank: int, stack: tuple[str, ...], **more: object) -> PeerStatus:
    told = Heartbeat(rank, f"host{rank}", "m", 100 + rank, 9, 12, "training", 3, stack, **more)
    return PeerStatus(told, 2.5, 2.5, "running", 50.0)


def test_an_account_says_who_why_where_all_stood_and_what_to_do():
    waits = ("train.py:9 step", "torch/distributed.py:1 all_reduce")
    hangs = ("train.py:7 step", "data.py:3 read")
    seen = {0: status(0, waits), 1: status(1, hangs), 2: status(2, waits)}
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
    seen = {0: status(0, ()), 1: status(1, (), state="failed", error="Trace\nValueError: x")}

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
