"""The threads of a rank that speak for it, look after the others, and end it when one is lost."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import torch.distributed as dist

from luthier.errors import Stopped
from luthier.processes.watch.beat import Beat, Pulse, State, stack_of
from luthier.processes.watch.board import Board
from luthier.processes.watch.ending import Terminations, end_process
from luthier.processes.watch.judge import Limits, Sighting, Verdict, judge, judge_cut
from luthier.processes.watch.neighbours import Neighbours
from luthier.processes.watch.report import advise, describe
from luthier.processes.watch.sightings import Sightings
from luthier.secrecy import masked

LOST = 70
"""The exit code of a rank that ends because of another."""

LONGEST_ERROR = 6000
"""Characters of an error's traceback that the others are told: its end."""

FEW_RANKS = 32
"""Up to so many ranks, each looks at all; beyond, most look at those of their machine."""

KEEPERS = 4
"""Of many ranks, the first ones that look at all."""

GRACE_S = 10.0
"""How long a rank may go on after another failed: its own error often says the same."""

QUICK_S = 0.1
"""Between two beats where something has happened."""

PAUSE_S = 3.0
"""A thread that wakes so much too late was itself kept from running, and judges nobody for it."""

LONGEST_PARTING_S = 1800.0
"""How long a rank that is done waits for those that still write."""

PARTING_S = 10.0
"""How long it waits for those that are about to leave as well."""


class Watch:
    """One rank's watch over a run, from `start` to `leave`.

    A courier thread carries beats to the board and back; it may be held up there. A judge thread
    depends on nobody: it knows the age of what the courier brought last, by this process's own
    clock, and what the machine says of the processes beside this one.

    Args:
        store: any store of torch.distributed that all ranks reach.
        rank: this one.
        num_ranks: of the run.
        ddp_timeout_s: how long a collective may take.
        folder: the run's, named in the advice.
        holds_store: whether the store ends with this process.
        is_abrupt: whether a collective that takes too long ends its process.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        num_ranks: int,
        ddp_timeout_s: float,
        folder: str,
        *,
        holds_store: bool = False,
        is_abrupt: bool = False,
    ) -> None:
        self.pulse = Pulse(rank)
        self.limits = Limits.within(ddp_timeout_s, is_abrupt=is_abrupt)
        self.interval_s = max(1.0, num_ranks / 256)
        self._linger_s = 2.5 * self.interval_s  # so that the others can read the last words
        self._rank, self._num_ranks, self._folder = rank, num_ranks, folder
        self._holds_store = holds_store
        self._board = Board(store)
        self._neighbours = Neighbours()
        self._sightings = Sightings(rank, self._neighbours)
        self._looked_at = {rank}
        self._posted: Verdict | None = None
        self._failed_at: float | None = None
        self._talk_failed = self._is_broken = False
        self._call = threading.Event()  # the courier goes at once
        self._gavel = threading.Event()  # the judge judges at once
        self._round = threading.Condition()  # a round of the courier has ended
        self._over = threading.Event()
        self._last = threading.Lock()  # taken once, by who ends the process
        self._terminations = Terminations()
        self._threads = [
            threading.Thread(target=work, name=f"luthier-{work.__name__}", daemon=True)
            for work in (self._carry, self._judge)
        ]

    def start(self) -> None:
        """Begins; for the main thread."""
        self._terminations.start()
        for thread in self._threads:
            thread.start()

    def hurry(self) -> None:
        """Judges at once, and gives a rank that has failed no time; for any thread."""
        self._terminations.was_asked = True
        self._gavel.set()

    def leave(self, problem: BaseException | None) -> None:
        """Ends the watch; for the main thread, before the process group is left.

        With no problem this waits until the others are done as well. A problem that only says that
        another rank is not there any more never returns: the process ends with an account of who
        is lost and why.

        Args:
            problem: the exception that ends this rank; None at a normal end.
        """
        if problem is None:
            self._part(LONGEST_PARTING_S)
        elif _is_asked_for(problem):
            self._part(PARTING_S)
        elif is_of_talk(problem):
            self._explain(problem)
        else:
            self.pulse.end("failed", self._told(problem), stack_of(problem))
            self._next_round(timeout_s=3.0)
            if self._holds_store:
                time.sleep(self._linger_s)
        self._over.set()
        self._call.set()
        self._gavel.set()
        self._threads[1].join(timeout=2 * self.interval_s)
        self._terminations.stop()

    def _explain(self, problem: BaseException) -> NoReturn:
        """Ends this process with what is found to have cut its talk with the others."""
        self.pulse.cut_off(stack_of(problem))
        self._talk_failed = True
        self._call.set()
        self._gavel.set()
        end = time.monotonic() + self.limits.once_talk_failed().silent_s + 5.0
        settled = time.monotonic() + 5.0
        while time.monotonic() < end and not (time.monotonic() > settled and self._all_speak()):
            self._over.wait(0.2)
        said = traceback.format_exception_only(problem)[-1].strip()
        told = masked(said)[:400]
        others = self._sightings.all()
        others.pop(self._rank, None)
        self._end(judge_cut(others, told))

    def _all_speak(self) -> bool:
        sightings = self._sightings.all().values()
        return all(seen.heard_s <= PAUSE_S and seen.process != "stopped" for seen in sightings)

    def _told(self, problem: BaseException) -> str:
        return masked("".join(traceback.format_exception(problem)))[-LONGEST_ERROR:]

    # The courier

    def _carry(self) -> None:
        while not self._over.is_set():
            try:
                if self._is_broken:
                    self._board.reconnect()
                begun = time.monotonic()
                beat = self.pulse.beat()
                self._board.publish(beat)
                beats = self._board.read(self._looked_at)
                self._posted = self._board.posted()
                self._sightings.note({**beats, self._rank: beat}, begun, time.monotonic())
                self._look_further(beats)
                self._is_broken = False
            except (dist.DistError, RuntimeError, OSError):
                self._is_broken = True  # the judge sees how long nothing has come
            with self._round:
                self._round.notify_all()
            self._call.wait(self._wait_s())
            self._call.clear()

    def _wait_s(self) -> float:
        is_urgent = self.pulse.state != "living" or self._terminations.was_asked
        is_urgent = is_urgent or self._talk_failed
        return QUICK_S * max(1.0, self._num_ranks / FEW_RANKS) if is_urgent else self.interval_s

    def _look_further(self, beats: dict[int, Beat]) -> None:
        """Decides whom this rank looks at, once it knows where they are."""
        if len(self._looked_at) == self._num_ranks:
            return
        if self._num_ranks <= FEW_RANKS or self._rank < KEEPERS:
            self._looked_at = set(range(self._num_ranks))
            return
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        first = self._rank - int(os.environ.get("LOCAL_RANK") or 0)
        self._looked_at = {*range(KEEPERS), *range(first, min(first + local_size, self._num_ranks))}

    def _next_round(self, timeout_s: float) -> None:
        """Waits until the courier has been at the board once more."""
        for _ in range(2):  # the one under way may have begun too early
            with self._round:
                self._call.set()
                self._round.wait(timeout_s)

    def _part(self, longest_s: float) -> None:
        """Waits for the others to be done; who keeps the store, for them to need it no more."""
        self.pulse.end("done")
        self._next_round(timeout_s=3.0)
        self._wait_while("living", longest_s=longest_s)
        self.pulse.end("left")
        self._next_round(timeout_s=3.0)
        if self._holds_store:
            self._wait_while("living", "done", longest_s=PARTING_S)

    def _wait_while(self, *states: State, longest_s: float) -> None:
        end = time.monotonic() + longest_s
        while time.monotonic() < end and self._sightings.anyone_is(*states):
            if self._is_broken:
                return  # who keeps the store leaves last
            with self._round:
                self._round.wait(self.interval_s)

    # The judge

    def _judge(self) -> None:
        while not self._has_left():
            before, wait_s = time.monotonic(), self._wait_s()
            self._gavel.wait(wait_s)
            self._gavel.clear()
            late_s = time.monotonic() - before - wait_s
            if late_s > PAUSE_S:
                self._sightings.excuse(late_s)
            verdict = self._verdict()
            if verdict is not None and not self._has_left():
                self._end(verdict)

    def _has_left(self) -> bool:
        return self._over.is_set() or self.pulse.state == "failed"

    def _verdict(self) -> Verdict | None:
        if self._posted is not None:
            return self._posted
        if self._is_broken and self.pulse.state != "living":
            return None  # who keeps the store leaves last, and all is well
        limits = self.limits.once_talk_failed() if self._talk_failed else self.limits
        sightings = self._sightings.all()
        if self.pulse.state != "living":
            sightings.pop(self._rank, None)
        verdict = judge(sightings, limits)
        if verdict is None and self._sightings.silence_s() > limits.silent_s + PAUSE_S:
            return self._apart()  # later than a stopped rank that keeps the store is found
        if verdict is None or verdict.kind != "failed":
            return verdict
        self._failed_at = self._failed_at or time.monotonic()
        is_urgent = self._talk_failed or self._terminations.was_asked
        if is_urgent or time.monotonic() > self._failed_at + GRACE_S:
            return verdict
        return None

    def _apart(self) -> Verdict:
        silence_s = self._sightings.silence_s()
        return Verdict(
            "apart",
            (),
            f"the store by which ranks know of each other has not answered for {silence_s:.0f} s: "
            "the launcher or rank 0 that keeps it, or the way there, has failed",
        )

    # The end

    def _end(self, verdict: Verdict) -> NoReturn:
        self._last.acquire()
        self._terminations.is_ending = True
        silence_s = self._sightings.silence_s()
        sightings = {
            rank: replace(seen, heard_s=seen.heard_s + silence_s)
            for rank, seen in self._sightings.all().items()
        }
        sightings[self._rank] = Sighting(self.pulse.beat(), 0.0, 0.0)
        advice = advise(
            verdict,
            self._folder,
            ran_out_of_memory=self._neighbours.ran_out_of_memory(),
            environment=os.environ,
        )
        account = describe(verdict, self._rank, sightings, self._num_ranks, advice)
        if self._posted is None:
            found = replace(verdict, why=f"{verdict.why} (as rank {self._rank} found)")
            posting = threading.Thread(target=self._post, args=(found,), daemon=True)
            posting.start()
            posting.join(2.0)
        if verdict.kind == "lost":
            self._end_processes(verdict.ranks, sightings)
        others_live = any(
            seen.beat.state == "living" and rank not in (self._rank, *verdict.ranks)
            for rank, seen in sightings.items()
        )
        is_needed = self._holds_store and others_live
        end_process(LOST, account, self._linger_s if is_needed else 0.0)

    def _post(self, verdict: Verdict) -> None:
        with contextlib.suppress(dist.DistError, RuntimeError):  # who keeps the store may be lost
            self._board.post(verdict)

    def _end_processes(self, ranks: Iterable[int], sightings: Mapping[int, Sighting]) -> None:
        for rank in ranks:
            seen = sightings.get(rank)
            if seen is not None:
                self._neighbours.end(seen.beat)


def is_of_talk(problem: BaseException) -> bool:
    """Whether an exception says that an exchange with other ranks failed, and no more."""
    if isinstance(problem, dist.DistError):
        return True
    text = str(problem)
    return isinstance(problem, RuntimeError) and any(
        word in text for word in ("gloo/", "[Gloo]", "Gloo ", "NCCL")
    )


def _is_asked_for(problem: BaseException) -> bool:
    """Whether all ranks end this way because somebody asked them to."""
    if isinstance(problem, SystemExit):
        return problem.code in (0, None, Stopped.exit_code)
    return isinstance(problem, Stopped)
