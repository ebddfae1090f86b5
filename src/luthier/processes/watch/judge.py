"""What is known of each rank -> whether one is lost, or all of them have stalled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

from luthier.processes.watch.beat import CUT_OFF, Beat
from luthier.processes.watch.neighbours import Process

Kind: TypeAlias = Literal["failed", "lost", "stalled", "apart"]

SHORTEST_S = 10.0
"""No rank is given up sooner than this, however short `ddp_timeout` is, unless it is gone."""


@dataclass(frozen=True)
class Limits:
    """How long what is taken for a loss, in seconds.

    Attributes:
        stopped_s: a process that was stopped (SIGSTOP, a debugger).
        silent_s: a rank that is not heard and cannot be seen: its machine or the network is gone.
        stalled_s: ranks that live and do not get on; a rank whose process runs, seen to, but that
            says nothing, such as in C code that never lets Python's other threads run.
    """

    stopped_s: float
    silent_s: float
    stalled_s: float

    @classmethod
    def within(cls, ddp_timeout_s: float, *, is_abrupt: bool = False) -> Limits:
        """The limits that follow from how long collectives may take.

        Args:
            ddp_timeout_s: that time.
            is_abrupt: whether a collective that takes longer ends its process at once, as NCCL's
                does: then a stall is told before. Else it raises an error, which says more, and a
                stall is told where none has come.
        """
        longest = max(ddp_timeout_s, SHORTEST_S)
        stalled_s = max(0.99 * longest, SHORTEST_S) if is_abrupt else longest + 5.0
        return cls(min(longest, 60.0), min(longest, 300.0), stalled_s)

    def once_talk_failed(self) -> Limits:
        """The limits when the ranks' talk has already failed, so that one of them is suspect."""
        return replace(self, stopped_s=SHORTEST_S, silent_s=SHORTEST_S)


@dataclass(frozen=True)
class Sighting:
    """What this rank knows of another, by its own clock.

    Attributes:
        beat: the last that it said.
        heard_s: how long before the last look at the board it had said that.
        still_s: how long it has not got on.
        process: how its process is; None where it cannot be seen from here.
        process_s: for how long its process has been so.
    """

    beat: Beat
    heard_s: float
    still_s: float
    process: Process | None = None
    process_s: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Why a run ends.

    Attributes:
        kind: a rank failed by itself; is lost; does not get on; or ranks do not reach each other.
        ranks: whom it is about.
        why: a sentence.
    """

    kind: Kind
    ranks: tuple[int, ...]
    why: str

    def to_json(self) -> str:
        """The verdict as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Verdict:
        """A verdict from its text."""
        values = json.loads(text)
        return cls(values["kind"], tuple(values["ranks"]), values["why"])


def judge(sightings: Mapping[int, Sighting], limits: Limits) -> Verdict | None:
    """Why the run cannot go on; None while it can.

    Args:
        sightings: of every rank that this one looks at and has heard of, itself among them.
        limits: how long what is borne.
    """
    failed = [rank for rank, seen in sightings.items() if seen.beat.state == "failed"]
    if failed:
        last_line = (sightings[failed[0]].beat.error.splitlines() or ["no word of why"])[-1]
        return Verdict("failed", tuple(failed), f"{_named(failed)} left the run: {last_line}")
    working = {rank: seen for rank, seen in sightings.items() if seen.beat.state == "living"}
    lost: dict[int, str] = {}
    heard_machines = {
        seen.beat.machine for seen in working.values() if seen.heard_s <= limits.silent_s
    }
    for rank, seen in working.items():
        reason = _loss(seen, limits, heard_machines)
        if reason is not None:
            lost[rank] = reason
    if len(lost) == 1:
        [(rank, reason)] = lost.items()
        return Verdict("lost", (rank,), f"rank {rank} is lost: it {reason}")
    if lost:
        reasons = "; ".join(f"rank {rank} {reason}" for rank, reason in lost.items())
        return Verdict("lost", tuple(lost), f"{_named(list(lost))} are lost: {reasons}")
    return _stall(working, limits)


def judge_cut(sightings: Mapping[int, Sighting], problem: str) -> Verdict:
    """Why the run ends where an exchange failed though no rank is lost.

    Args:
        sightings: of the other ranks.
        problem: what the exchange ended with.
    """
    absent = [
        rank
        for rank, seen in sightings.items()
        if seen.beat.state == "living" and seen.beat.doing != CUT_OFF
    ]
    if not absent:
        return Verdict(
            "apart", (), f"the ranks live, but an exchange between them failed: {problem}"
        )
    return Verdict(
        "stalled", tuple(absent), f"{_named(absent)} did not come to an exchange ({problem})"
    )


def _loss(seen: Sighting, limits: Limits, heard_machines: set[str]) -> str | None:
    if seen.process == "gone":
        return "has ended without a word"
    if seen.process == "stopped" and seen.process_s > limits.stopped_s:
        return f"has been stopped for {seen.process_s:.0f} s (SIGSTOP, or a debugger)"
    if seen.process is None:
        is_lonely = seen.beat.machine not in heard_machines
        if is_lonely and seen.heard_s > limits.silent_s:
            return (
                f"has not been heard of for {seen.heard_s:.0f} s, nor any rank beside it: its "
                "machine, or the way there, has failed"
            )
    if seen.heard_s > limits.stalled_s:
        return f"has not been heard of for {seen.heard_s:.0f} s"
    return None


def _stall(working: Mapping[int, Sighting], limits: Limits) -> Verdict | None:
    if not working:
        return None
    has_begun = all(seen.beat.doing != "starting" for seen in working.values())
    still_s = min(seen.still_s for seen in working.values())
    if not has_begun or still_s <= limits.stalled_s:
        return None
    return Verdict(
        "stalled", (), f"no rank has got on for {still_s:.0f} s, though all of them live"
    )


def _named(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
