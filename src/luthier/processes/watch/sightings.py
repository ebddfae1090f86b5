"""What a rank has seen of the others, and when, by its own clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from luthier.processes.watch.beat import Beat, State
from luthier.processes.watch.judge import Sighting
from luthier.processes.watch.neighbours import Neighbours, Process

CONFIRMED_S = 3.0
"""A process is gone for good when its last words have been looked for, or for so long in vain."""


class Sightings:
    """The last beat of each rank with the moments when it was new; safe between threads.

    Ages are measured on a monotonic clock from when a rank's count was seen to change, so that
    the clocks of machines may differ as they like.

    Args:
        rank: this one, which needs no looking after.
        neighbours: who knows the processes on this machine.
        now: a clock in seconds.
    """

    def __init__(
        self, rank: int, neighbours: Neighbours, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._rank, self._neighbours, self._now = rank, neighbours, now
        self._beats: dict[int, Beat] = {}
        self._begun = self._round_begun = self._round_ended = now()
        self._heard: dict[int, float] = {}
        self._moved: dict[int, float] = {}
        self._processes: dict[int, tuple[Process | None, float]] = {}
        self._lock = threading.Lock()

    def note(self, beats: Mapping[int, Beat], begun: float, ended: float) -> None:
        """Takes what was read from the board between two moments."""
        with self._lock:
            for rank, beat in beats.items():
                before = self._beats.get(rank)
                if before is None or before.count != beat.count:
                    self._heard[rank] = ended
                if before is None or before.moves != beat.moves:
                    self._moved[rank] = ended
                self._beats[rank] = beat
            self._round_begun, self._round_ended = begun, ended

    def excuse(self, seconds: float) -> None:
        """Takes off every age a time in which this process did not run."""
        with self._lock:
            for times in (self._heard, self._moved):
                for rank in times:
                    times[rank] = min(times[rank] + seconds, self._now())
            self._processes = {
                rank: (process, min(since + seconds, self._now()))
                for rank, (process, since) in self._processes.items()
            }
            self._round_ended = min(self._round_ended + seconds, self._now())

    def silence_s(self) -> float:
        """How long the board has not been reached."""
        return self._now() - self._round_ended

    def anyone_is(self, *states: State) -> bool:
        """Whether a rank that was heard of said last that it is in one of these states."""
        with self._lock:
            return any(beat.state in states for beat in self._beats.values())

    def all(self) -> dict[int, Sighting]:
        """What is known now, by rank."""
        with self._lock:
            return {rank: self._sighting(rank, beat) for rank, beat in self._beats.items()}

    def _sighting(self, rank: int, beat: Beat) -> Sighting:
        # with no news of anybody, nobody is older for it
        heard_s = max(self._round_ended - self._heard[rank], 0.0)
        still_s = max(self._round_ended - self._moved[rank], 0.0)
        if rank == self._rank:
            return Sighting(beat, heard_s, still_s)
        process, since = self._look(rank, beat)
        if process == "gone" and not self._is_confirmed(since):
            process = "running"  # its last words may be on the board
        return Sighting(beat, heard_s, still_s, process, self._now() - since)

    def _look(self, rank: int, beat: Beat) -> tuple[Process | None, float]:
        process = self._neighbours.state(beat)
        before = self._processes.get(rank)
        if before is None or before[0] != process:
            self._processes[rank] = before = (process, self._now())
        return before

    def _is_confirmed(self, since: float) -> bool:
        return self._round_begun > since or self._now() - since > CONFIRMED_S
