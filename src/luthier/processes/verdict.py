"""What is known of each rank -> whether one is lost or all have stalled, and what the log says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

from luthier.processes.heartbeat import CUT_OFF, PeerStatus

Kind: TypeAlias = Literal["failed", "lost", "stalled", "apart"]

SHORTEST_S = 10.0
"""No rank is given up sooner than this, however short `ddp_timeout` is, unless it is gone."""


@dataclass(frozen=True)
class Limits:
    """How long what is taken for a loss, in seconds."""

    stopped_s: float  # a process that was stopped (SIGSTOP, a debugger)
    silent_s: float
    """A rank that is not heard and cannot be seen: its machine or the network is gone."""
    stalled_s: float
    """Ranks that live and do not get on; a rank whose process runs, seen to, but that says nothing,
    such as in C code that never lets Python's other threads run."""

    @classmethod
    def within(cls, ddp_timeout_s: float, *, is_abrupt: bool = False) -> Limits:
        """The limits that follow from how long collectives may take.

        `is_abrupt` where a collective that takes longer ends its process at once, as NCCL's does:
        then a stall is told before. Else it raises an error, which says more, and a stall is told
        where none has come.
        """
        longest = max(ddp_timeout_s, SHORTEST_S)
        stalled_s = max(0.99 * longest, SHORTEST_S) if is_abrupt else longest + 5.0
        return cls(min(longest, 60.0), min(longest, 300.0), stalled_s)

    def once_talk_failed(self) -> Limits:
        """The limits when the ranks' talk has already failed, so that one of them is suspect."""
        return replace(self, stopped_s=SHORTEST_S, silent_s=SHORTEST_S)


@dataclass(frozen=True)
class Verdict:
    """Why a run ends."""

    kind: Kind
    """A rank failed by itself; is lost; does not get on; or ranks do not reach each other."""
    ranks: tuple[int, ...]  # whom it is about
    why: str  # a sentence

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Verdict:
        values = json.loads(text)
        return cls(values["kind"], tuple(values["ranks"]), values["why"])


def judge(peers: Mapping[int, PeerStatus], limits: Limits) -> Verdict | None:
    """Why the run cannot go on, by every rank that is looked at and this one; None while it can."""
    failed = [rank for rank, seen in peers.items() if seen.heartbeat.state == "failed"]
    if failed:
        error = peers[failed[0]].heartbeat.error.splitlines() or ["no word of why"]
        return Verdict("failed", tuple(failed), f"{_named(failed)} left the run: {error[-1]}")
    working = {rank: seen for rank, seen in peers.items() if seen.heartbeat.state == "living"}
    heard_machines = {
        seen.heartbeat.machine for seen in working.values() if seen.heard_s <= limits.silent_s
    }
    lost = {
        rank: reason
        for rank, seen in working.items()
        if (reason := _loss(seen, limits, heard_machines)) is not None
    }
    if len(lost) == 1:
        [(rank, reason)] = lost.items()
        return Verdict("lost", (rank,), f"rank {rank} is lost: it {reason}")
    if lost:
        reasons = "; ".join(f"rank {rank} {reason}" for rank, reason in lost.items())
        return Verdict("lost", tuple(lost), f"{_named(list(lost))} are lost: {reasons}")
    has_begun = all(seen.heartbeat.doing != "starting" for seen in working.values())
    still_s = min((seen.still_s for seen in working.values()), default=0.0)
    if has_begun and still_s > limits.stalled_s:
        why = f"no rank has got on for {still_s:.0f} s, though all of them live"
        return Verdict("stalled", (), why)
    return None


def _loss(seen: PeerStatus, limits: Limits, heard_machines: set[str]) -> str | None:
    if seen.process == "gone":
        return "has ended without a word"
    if seen.process == "stopped" and seen.process_s > limits.stopped_s:
        return f"has been stopped for {seen.process_s:.0f} s (SIGSTOP, or a debugger)"
    is_lonely = seen.heartbeat.machine not in heard_machines
    if seen.process is None and is_lonely and seen.heard_s > limits.silent_s:
        return (
            f"has not been heard of for {seen.heard_s:.0f} s, nor any rank beside it: its "
            "machine, or the way there, has failed"
        )
    if seen.heard_s > limits.stalled_s:
        return f"has not been heard of for {seen.heard_s:.0f} s"
    return None


def judge_cut(others: Mapping[int, PeerStatus], problem: str) -> Verdict:
    """Why the run ends where an exchange failed by a problem, though none of the others is lost."""
    absent = [
        rank
        for rank, seen in others.items()
        if seen.heartbeat.state == "living" and seen.heartbeat.doing != CUT_OFF
    ]
    if not absent:
        return Verdict(
            "apart", (), f"the ranks live, but an exchange between them failed: {problem}"
        )
    return Verdict(
        "stalled", tuple(absent), f"{_named(absent)} did not come to an exchange ({problem})"
    )


def _named(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def describe(
    verdict: Verdict,
    rank: int,
    peers: Mapping[int, PeerStatus],
    num_ranks: int,
    advice: Iterable[str],
) -> str:
    """The lines that the log gets: who, why, where every rank stood, what to do.

    It is the account of a rank that knows `peers`, itself among them, of all the ranks of the run.
    """
    lines = [f"rank {rank} ends the run: {verdict.why}.", "What each rank last said of itself:"]
    stacks: dict[tuple[str, ...], list[str]] = {}
    errors: list[str] = []
    processes = {"gone": "is gone", "stopped": "is stopped", "running": "runs"}
    for number, seen in sorted(peers.items()):
        last = seen.heartbeat
        doing = last.doing if last.state == "living" else last.state
        lines.append(
            f"  rank {number}  host {last.host}  pid {last.pid}  step {last.step}  {doing}  "
            f"{max(seen.heard_s, 0):.1f} s ago"
            + (f", its process {processes[seen.process]}" if seen.process else "")
            + ("  <-- this one" if number in verdict.ranks else "")
        )
        stacks.setdefault(last.stack or ("(not known)",), []).append(str(number))
        if last.error:
            errors.append(f"What ended rank {number}:")
            errors += [f"    {line}" for line in last.error.splitlines()]
    if len(peers) < num_ranks:
        lines.append(f"  ({num_ranks - len(peers)} more ranks are not looked at from here)")
    for stack, ranks in sorted(stacks.items(), key=lambda each: len(each[1])):  # the rarest first
        whose = "rank " + ranks[0] if len(ranks) == 1 else "ranks " + ", ".join(ranks)
        lines.append(f"Where the main thread of {whose} stood (innermost last):")
        lines += [f"    {place}" for place in stack]
    lines += [*errors, "What to do:", *(f"  {sentence}" for sentence in advice)]
    return "\n".join(["", *lines, ""])


def advise(
    verdict: Verdict, folder: str, *, ran_out_of_memory: bool, environment: Mapping[str, str]
) -> list[str]:
    """What the reader can do, a sentence each."""
    advice = []
    restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0)
    most = int(environment.get("TORCHELASTIC_MAX_RESTARTS") or 0)
    resumes = f"from the newest whole checkpoint in {folder}, or from the start where none is."
    if restarts < most:
        advice.append(
            f"Nothing: the launcher starts all ranks again (time {restarts + 1} of {most}), and "
            f"they go on {resumes}"
        )
    else:
        first = "Mend that first. Then start" if verdict.kind == "failed" else "Start"
        advice.append(f"{first} the same command again: it goes on {resumes}")
    if verdict.kind == "lost":
        advice.append(
            "The kernel of this machine has ended a process for want of memory meanwhile (see "
            "dmesg). Take fewer tokens a micro-batch, or shard the weights further."
            if ran_out_of_memory
            else "If it happens again, see dmesg on that machine (a process killed for want of "
            "memory, a device that fell off) and the log of its launcher."
        )
    if verdict.kind == "stalled":
        advice.append(
            "A rank whose stack differs from the others' is the one they wait for: see what holds "
            "it. If a step of this run may take so long, raise ddp_timeout."
        )
    if verdict.kind == "apart":
        advice.append("See whether the machines still reach each other.")
    return advice
