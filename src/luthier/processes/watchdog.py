"""The thread of a rank that speaks for it, looks after the others, and ends it when one is lost."""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import sys
import threading
import time
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch.distributed as dist
from transformers import TrainerCallback

from luthier.arguments.record import Arguments
from luthier.errors import LuthierError, Stopped
from luthier.processes.heartbeat import CUT_OFF, Heartbeat, Peers, PeerStatus, State, stack_of
from luthier.processes.ranks import num_ranks, rank
from luthier.processes.signals import LateTermination, end_process
from luthier.processes.verdict import Limits, Verdict, advise, describe, judge, judge_cut
from luthier.secrecy import masked

LOST = 70
"""The exit code of a rank that ends because of another."""

PREFIX = "luthier/watchdog"
"""Of the names in the store: a heartbeat of each rank, and why the run ends; then the run's number,
as a process may run one after another."""

_numbers = itertools.count(1)

OPERATION_TIMEOUT = timedelta(seconds=30)

LONGEST_ERROR = 6000
"""Characters of an error's traceback that the others are told: its end."""

FEW_RANKS = 32
"""Up to so many ranks, each looks at all; beyond, most look at those of their machine."""

KEEPERS = 4
"""Of many ranks, the first ones that look at all."""

GRACE_S = 10.0
"""How long a rank may go on after another failed: its own error often says the same."""

QUICK_S = 0.1
"""Between two heartbeats where something has happened."""

PAUSE_S = 3.0
"""A round that takes so much too long: this process was kept from running, and judges nobody."""

HEARD_S = 3.0
"""How long a rank that ends tries to leave its last words in the store."""

LONGEST_PARTING_S = 1800.0
"""How long a rank that is done waits for those that still write."""

PARTING_S = 10.0
"""How long it waits for those that are about to leave as well."""

SAME_PROBLEM_S = 5.0
"""How long a rank that fails waits for the first one to fail by the same."""


class Watchdog:
    """A block in which this rank and the others look after each other, once it has begun to.

    Every second its thread leaves a heartbeat in the store of the process group, reads those of the
    others, and judges. It knows their age by this process's own clock, and what the machine says of
    the processes beside this one. An exchange with the store is not bounded in time: one whose
    server is stopped never answers. So each has a thread to itself, and one that does not come back
    is left behind.

    Whether the block ends well or by an exception, the others learn it; see `leave`.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._termination = LateTermination()

    def begin(self, arguments: Arguments) -> list[TrainerCallback]:
        """Begins, when the process group has been joined; alone, nothing happens.

        Its callbacks hear that the run gets on.
        """
        if num_ranks() == 1:
            return []
        if sys.__stderr__ is not None and not faulthandler.is_enabled():
            faulthandler.enable(sys.__stderr__)
        self.start(
            dist.distributed_c10d._get_default_store(),
            rank(),
            num_ranks(),
            float(arguments.training.ddp_timeout),
            str(arguments.training.output_dir),
            holds_store=rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            is_abrupt="gloo" not in dist.get_backend(),
        )
        return [HeartbeatCallback(self.own)]

    def start(
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
        """Begins to look after the others; for the main thread.

        Args:
            store: any store of torch.distributed that all ranks reach.
            rank: this one.
            num_ranks: of the run.
            ddp_timeout_s: how long a collective may take.
            folder: the run's, named in the advice.
            holds_store: whether the store ends with this process.
            is_abrupt: whether a collective that takes too long ends its process.
        """
        self.own = Heartbeat.of(rank)
        self._limits = Limits.within(ddp_timeout_s, is_abrupt=is_abrupt)
        self._interval_s = max(1.0, num_ranks / 256)
        self._linger_s = 2.5 * self._interval_s  # so that the others can read the last words
        self._num_ranks, self._folder, self._holds_store = num_ranks, folder, holds_store
        self._told_store, self._prefix = store, f"{PREFIX}/{next(_numbers)}"
        self._store: Any = None
        self._num_exchanges = 0
        self._is_broken = self._talk_failed = False
        self._stack: tuple[str, ...] = ()  # where this rank has failed
        self._peers = Peers(rank)
        self._looked_at, self._known = {rank}, set[int]()
        self._posted: Verdict | None = None
        self._failed_at: float | None = None
        self._times_out_of_memory = _times_out_of_memory()
        self._wake, self._over = threading.Event(), threading.Event()
        self._last = threading.Lock()  # taken once, by who ends the process
        self._termination.start()
        self._thread = threading.Thread(target=self._watch, name="luthier-watchdog", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Judges at once, and gives a rank that has failed no time; for any thread.

        A launcher that has lost a rank tells the others to end.
        """
        if self._thread is not None:
            self._termination.was_asked = True
            self._wake.set()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self.leave(problem)

    # the main thread, at the end

    def leave(self, problem: BaseException | None) -> None:
        """Ends the watch, well or by a problem; for the main thread, before the group is left.

        Where all ranks end alike, this waits until the others are done as well. A problem that only
        says that another rank is not there any more never returns: the process ends with an account
        of who is lost and why. Of any other problem the others learn, and this rank whether the
        first one has the same to say, which is then common to all.
        """
        assert self._thread is not None
        good_codes = (0, None, Stopped.exit_code)
        exits = isinstance(problem, SystemExit) and problem.code in good_codes
        if problem is None or exits or isinstance(problem, Stopped):
            self.own.end("done")
            self._await_exchange()
            self._wait_while("living", longest_s=PARTING_S if exits else LONGEST_PARTING_S)
            self.own.end("left")
            self._await_exchange()
            if self._holds_store:
                self._wait_while("living", "done", longest_s=PARTING_S)
        elif is_of_talk(problem):
            self._explain(problem)
        else:
            told = masked("".join(traceback.format_exception(problem)))[-LONGEST_ERROR:]
            self._stack = stack_of(problem)
            self.own.end("failed", told)
            self._await_exchange()
            if isinstance(problem, LuthierError) and problem.is_common:
                self._wait_while("living", longest_s=LONGEST_PARTING_S)
            elif isinstance(problem, LuthierError):
                problem.is_common = self._is_said_by_first(masked(str(problem)))
            if self._holds_store:
                time.sleep(self._linger_s)
        self._over.set()
        self._wake.set()
        self._thread.join(timeout=2 * self._interval_s)
        self._termination.stop()

    def _await_exchange(self) -> None:
        enough = self._num_exchanges + 2  # the one under way may have begun too early
        end = time.monotonic() + 2 * HEARD_S
        while self._num_exchanges < enough and time.monotonic() < end:
            self._wake.set()
            time.sleep(0.01)

    def _wait_while(self, *states: State, longest_s: float) -> None:
        end = time.monotonic() + longest_s
        while time.monotonic() < end and self._peers.anyone_is(*states):
            if self._is_broken:
                return  # who keeps the store leaves last
            time.sleep(QUICK_S)

    def _is_said_by_first(self, text: str) -> bool:
        end = time.monotonic() + SAME_PROBLEM_S
        while self.own.rank > 0 and time.monotonic() < end:
            first = self._peers.all().get(0)
            if first is not None and first.heartbeat.state != "living":
                return first.heartbeat.error.rstrip().endswith(text[-LONGEST_ERROR:].rstrip())
            time.sleep(QUICK_S)
        return self.own.rank == 0

    def _explain(self, problem: BaseException) -> NoReturn:
        """Ends this process with what is found to have cut its talk with the others."""
        self._stack, self.own.doing = stack_of(problem), CUT_OFF
        self._talk_failed = True
        self._wake.set()
        begun = time.monotonic()
        longest_s = self._limits.once_talk_failed().silent_s + 5.0
        while (waited_s := time.monotonic() - begun) < longest_s:
            seen = self._peers.all().values()
            all_speak = all(each.heard_s <= PAUSE_S and each.process != "stopped" for each in seen)
            if waited_s > 5.0 and all_speak:
                break
            time.sleep(2 * QUICK_S)
        others = self._peers.all()
        others.pop(self.own.rank, None)
        said = traceback.format_exception_only(problem)[-1].strip()
        self._end(judge_cut(others, masked(said)[:400]))

    # the watchdog's thread

    def _watch(self) -> None:
        exchange: threading.Thread | None = None
        while not self._over.is_set():
            begun = time.monotonic()
            if exchange is None or not exchange.is_alive():
                exchange = threading.Thread(
                    target=self._exchange, name="luthier-exchange", daemon=True
                )
                exchange.start()
            exchange.join(self._interval_s)
            is_urgent = self.own.state != "living" or self._termination.was_asked
            is_urgent = is_urgent or self._talk_failed
            quick_s = QUICK_S * max(1.0, self._num_ranks / FEW_RANKS)
            wait_s = quick_s if is_urgent else self._interval_s
            self._wake.wait(wait_s)
            self._wake.clear()
            late_s = time.monotonic() - begun - self._interval_s - wait_s
            if late_s > PAUSE_S:
                self._peers.excuse(late_s)
            verdict = self._verdict()
            if verdict is None or self._over.is_set() or self.own.state == "failed":
                continue
            self._end(verdict)

    def _exchange(self) -> None:
        """Leaves a heartbeat in the store, and reads those of the others."""
        try:
            if self._store is None or self._is_broken:  # after an error a connection is of no use
                self._store = dist.PrefixStore(self._prefix, self._told_store.clone())
                self._store.set_timeout(OPERATION_TIMEOUT)
            store, begun = self._store, time.monotonic()
            own = self.own.now(self._stack)
            store.set(f"heartbeat/{own.rank}", own.to_json())
            for rank in self._looked_at - self._known:
                if store.check([f"heartbeat/{rank}"]):
                    self._known.add(rank)
            there = sorted(self._looked_at & self._known)
            texts = store.multi_get([f"heartbeat/{rank}" for rank in there]) if there else []
            heartbeats = {
                rank: Heartbeat.from_json(text) for rank, text in zip(there, texts, strict=True)
            }
            if store.check(["verdict"]):
                self._posted = Verdict.from_json(store.get("verdict"))
            self._peers.note({**heartbeats, own.rank: own}, begun, time.monotonic())
            self._look_further()
            self._is_broken = False
        except (dist.DistError, RuntimeError, OSError):
            self._is_broken = True  # how long nothing has come is seen by `silence_s`
        self._num_exchanges += 1

    def _look_further(self) -> None:
        """Decides whom this rank looks at, once it knows where they are."""
        everyone = set(range(self._num_ranks))
        if self._num_ranks > FEW_RANKS and self.own.rank >= KEEPERS:
            size = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
            first = self.own.rank - int(os.environ.get("LOCAL_RANK") or 0)
            everyone &= {*range(KEEPERS), *range(first, first + size)}
        self._looked_at = everyone

    def _verdict(self) -> Verdict | None:
        if self._posted is not None:
            return self._posted
        if self._is_broken and self.own.state != "living":
            return None  # who keeps the store leaves last, and all is well
        limits = self._limits.once_talk_failed() if self._talk_failed else self._limits
        peers = self._peers.all()
        if self.own.state != "living":
            peers.pop(self.own.rank, None)
        verdict = judge(peers, limits)
        silence_s = self._peers.silence_s()
        if verdict is None and silence_s > limits.silent_s + PAUSE_S:
            # later than a stopped rank that keeps the store is found
            return Verdict(
                "apart",
                (),
                "the store by which ranks know of each other has not answered for "
                f"{silence_s:.0f} s: the launcher or rank 0 that keeps it, or the way there, has "
                "failed",
            )
        if verdict is None or verdict.kind != "failed":
            return verdict
        self._failed_at = self._failed_at or time.monotonic()
        is_urgent = self._talk_failed or self._termination.was_asked
        is_due = is_urgent or time.monotonic() > self._failed_at + GRACE_S
        return verdict if is_due else None

    # the end, of either thread

    def _end(self, verdict: Verdict) -> NoReturn:
        self._last.acquire()
        self._termination.is_ending = True
        own, silence_s = self.own.rank, self._peers.silence_s()
        peers: dict[int, PeerStatus] = {
            rank: replace(seen, heard_s=seen.heard_s + silence_s)
            for rank, seen in self._peers.all().items()
        }
        peers[own] = PeerStatus(self.own.now(self._stack), 0.0, 0.0)
        advice = advise(
            verdict,
            self._folder,
            ran_out_of_memory=_times_out_of_memory() > self._times_out_of_memory,
            environment=os.environ,
        )
        account = describe(verdict, own, peers, self._num_ranks, advice)
        if self._posted is None:
            found = replace(verdict, why=f"{verdict.why} (as rank {own} found)")
            posting = threading.Thread(target=self._post, args=(found,), daemon=True)
            posting.start()
            posting.join(2.0)
        if verdict.kind == "lost":
            self._peers.kill(verdict.ranks)
        others_live = any(
            seen.heartbeat.state == "living" and rank not in (own, *verdict.ranks)
            for rank, seen in peers.items()
        )
        end_process(LOST, account, self._linger_s if self._holds_store and others_live else 0.0)

    def _post(self, verdict: Verdict) -> None:
        """Tells all ranks why the run ends; the first to say it is believed."""
        with contextlib.suppress(dist.DistError, RuntimeError):  # who keeps the store may be lost
            if self._store is not None:
                self._store.compare_set("verdict", "", verdict.to_json())


class HeartbeatCallback(TrainerCallback):
    """Marks in this rank's heartbeat that the run has got on."""

    def __init__(self, own: Heartbeat) -> None:
        self._own = own

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._own.mark(state.global_step + 1, "training")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._own.mark(state.global_step, "training")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._own.mark(state.global_step, "evaluating")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._own.mark(state.global_step, "finishing")

    on_substep_end = on_step_begin
    on_evaluate = on_save = on_step_end


def is_of_talk(problem: BaseException) -> bool:
    """Whether an exception says that an exchange with other ranks failed, and no more."""
    if isinstance(problem, dist.DistError):
        return True
    text = str(problem)
    return isinstance(problem, RuntimeError) and any(
        word in text for word in ("gloo/", "[Gloo]", "Gloo ", "NCCL")
    )


def _times_out_of_memory() -> int:
    if sys.platform == "linux":
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
