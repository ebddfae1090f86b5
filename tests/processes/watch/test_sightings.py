"""ages by this process's own clock"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from luthier.processes.watch.beat import Beat, Pulse
from luthier.processes.watch.neighbours import Neighbours
from luthier.processes.watch.sightings import Sightings


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def elsewhere(rank: int, count: int, moves: int = 1) -> Beat:
    return Beat(rank, "b", "machine b", 1, count, 1, "training", moves, ())


def see(sightings: Sightings, clock: Clock, *beats: Beat) -> None:
    sightings.note({beat.rank: beat for beat in beats}, clock.now, clock.now)


def test_an_age_counts_from_when_a_rank_was_heard_anew():
    clock = Clock()
    sightings = Sightings(0, Neighbours(), clock)

    for count in (1, 2, 2, 2):
        see(sightings, clock, elsewhere(1, count), elsewhere(2, int(clock.now)))
        clock.now += 5

    seen = sightings.all()
    assert (seen[1].heard_s, seen[2].heard_s) == (10, 0)
    assert seen[1].still_s == seen[2].still_s == 15
    assert seen[1].process is None


def test_nobody_grows_older_while_the_board_is_out_of_reach():
    clock = Clock()
    sightings = Sightings(0, Neighbours(), clock)
    see(sightings, clock, elsewhere(1, 1))

    clock.now += 500

    assert sightings.all()[1].heard_s == 0
    assert sightings.silence_s() == 500


def test_a_time_in_which_this_process_slept_is_nobodys_age():
    clock = Clock()
    sightings = Sightings(0, Neighbours(), clock)
    see(sightings, clock, elsewhere(1, 1))
    clock.now += 500
    see(sightings, clock, elsewhere(1, 1))

    sightings.excuse(499)

    seen = sightings.all()[1]
    assert seen.heard_s == seen.still_s == 1


def test_the_states_of_ranks_are_those_they_said_last():
    clock = Clock()
    sightings = Sightings(0, Neighbours(), clock)

    see(sightings, clock, elsewhere(0, 1), replace(elsewhere(1, 1), state="done"))
    assert sightings.anyone_is("living")
    see(sightings, clock, replace(elsewhere(0, 2), state="failed"))
    assert not sightings.anyone_is("living", "left")
    assert sightings.anyone_is("done", "left")


def test_a_neighbour_is_seen_to_run_to_stop_and_to_be_gone_once_its_last_words_were_looked_for():
    clock = Clock()
    sightings = Sightings(0, Neighbours(), clock)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            beat = replace(Pulse(1).beat(), pid=child.pid)
            see(sightings, clock, beat)
            assert sightings.all()[1].process == "running"

            child.send_signal(signal.SIGSTOP)
            wait_for(lambda: sightings.all()[1].process == "stopped")
            clock.now += 30
            assert sightings.all()[1].process_s == 30

            Neighbours().end(beat)
            wait_for(lambda: sightings.all()[1].process == "running")
        finally:
            child.kill()
    assert sightings.all()[1].process == "running"
    clock.now += 1
    see(sightings, clock, beat)
    assert sightings.all()[1].process == "gone"


def test_a_rank_of_another_machine_cannot_be_seen():
    neighbours = Neighbours()

    assert neighbours.state(elsewhere(1, 1)) is None
    assert neighbours.state(Pulse(0).beat()) == "running"
    assert Pulse(0).beat().pid == os.getpid()


def wait_for(claim) -> None:
    end = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.01)
