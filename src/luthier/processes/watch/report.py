"""A verdict -> the lines that the log gets: who, why, where every rank stood, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from luthier.processes.watch.judge import Sighting, Verdict


def describe(
    verdict: Verdict,
    rank: int,
    sightings: Mapping[int, Sighting],
    num_ranks: int,
    advice: Iterable[str],
) -> str:
    """The whole account of why a run ends, as this rank sees it.

    Args:
        verdict: why.
        rank: whose account it is.
        sightings: what it knows of the ranks it looks at, itself among them.
        num_ranks: of the whole run.
        advice: what to do, a sentence each.
    """
    lines = [f"rank {rank} ends the run: {verdict.why}.", "What each rank last said of itself:"]
    lines += [_row(number, seen, verdict) for number, seen in sorted(sightings.items())]
    if len(sightings) < num_ranks:
        lines.append(f"  ({num_ranks - len(sightings)} more ranks are not looked at from here)")
    for ranks, stack in _by_stack(sightings):
        whose = "rank " + ranks[0] if len(ranks) == 1 else "ranks " + ", ".join(ranks)
        lines.append(f"Where the main thread of {whose} stood (innermost last):")
        lines += [f"    {place}" for place in stack]
    for number, seen in sorted(sightings.items()):
        if seen.beat.error:
            lines.append(f"What ended rank {number}:")
            lines += [f"    {line}" for line in seen.beat.error.splitlines()]
    lines += ["What to do:", *(f"  {sentence}" for sentence in advice)]
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


def _row(rank: int, seen: Sighting, verdict: Verdict) -> str:
    mark = "  <-- this one" if rank in verdict.ranks else ""
    beat = seen.beat
    process = f", its process {_process(seen)}" if seen.process else ""
    doing = beat.doing if beat.state == "living" else beat.state
    return (
        f"  rank {rank}  host {beat.host}  pid {beat.pid}  step {beat.step}  {doing}  "
        f"{max(seen.heard_s, 0):.1f} s ago{process}{mark}"
    )


def _process(seen: Sighting) -> str:
    return {"gone": "is gone", "stopped": "is stopped", "running": "runs"}[seen.process or "gone"]


def _by_stack(sightings: Mapping[int, Sighting]) -> list[tuple[list[str], tuple[str, ...]]]:
    """The stacks with the ranks that stood there, the rarest first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for rank, seen in sorted(sightings.items()):
        groups.setdefault(seen.beat.stack or ("(not known)",), []).append(str(rank))
    return [
        (ranks, stack) for stack, ranks in sorted(groups.items(), key=lambda each: len(each[1]))
    ]
