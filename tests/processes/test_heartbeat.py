"""what a rank says of itself, and what is known of the others by this process's own clock"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

from luthier.processes.heartbeat import MOST_FRAMES, Heartbeat, Peers, main_stack, stack_of


def test_a_heartbeat_survives_its_text():
    own = Heartbeat.of(3)
    own.mark(7, "training")
    own.end("failed", 'ValueError: "x"\n')

    told = own.now(("a.py:1 f",))

    assert Heartbeat.from_json(told.to_json()) == told
    assert (told.rank, told.step, told.state, told.stack) == (3, 7, "failed", ("a.py:1 f",))


def test_the_stack_is_the_main_threads_whoever_asks():
    told: list[tuple[str, ...]] = []
    thread = threading.Thread(target=lambda: told.append(main_stack()))

    thread.start()
    thread.join()

    assert any("test_the_stack_is_the_main_threads_whoever_asks" in place for place in told[0])
    assert len(told[0]) <= MOST_FRAMES + 1


def test_a_stack_names_places_and_no_values():
    def fail(password: str) -> None:
        raise ValueError(password)

    try:
        fail("hunter22")
    except ValueError as problem:
        stack = stack_of(problem)

    assert stack[-1].endswith(" fail")
    assert "hunter22" not in "".join(stack)


def test_a_deep_stack_is_short_and_keeps_its_inner_end():
    def deep(levels: int) -> tuple[str, ...]:
        return main_stack() if levels == 0 else deep(levels - 1)

    stack = deep(200)

    assert len(stack) == MOST_FRAMES + 1
    assert stack[-1].endswith(" main_stack")
    assert "outer frames" in stack[0]


def test_a_rank_gets_on_by_a_mark_or_by_another_stack():
    own = Heartbeat.of(0)
    first = own.now()
    own.mark(1, "training")
    marked = own.now()
    elsewhere = own.now()

    assert first.moves < marked.moves < elsewhere.moves

    one, other = own.now(("a.py:1 f",)), own.now(("a.py:1 f",))
    assert one.moves == other.moves
    assert one.count < other.count


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def elsewhere(rank: int, count: int, moves: int = 1) -> Heartbeat:
    return Heartbeat(rank, "b", "machine b", 1, count, 1, "training", moves)


def see(peers: Peers, clock: Clock, *heard: Heartbeat) -> None:
    peers.note({each.rank: each for each in heard}, clock.now, clock.now)


def test_an_age_counts_from_when_a_rank_was_heard_anew():
    clock = Clock()
    peers = Peers(0, clock)

    for count in (1, 2, 2, 2):
        see(peers, clock, elsewhere(1, count), elsewhere(2, int(clock.now)))
        clock.now += 5

    seen = peers.all()
    assert (seen[1].heard_s, seen[2].heard_s) == (10, 0)
    assert seen[1].still_s == seen[2].still_s == 15
    assert seen[1].process is None


def test_nobody_grows_older_while_the_store_is_out_of_reach():
    clock = Clock()
    peers = Peers(0, clock)
    see(peers, clock, elsewhere(1, 1))

    clock.now += 500

    assert peers.all()[1].heard_s == 0
    assert peers.silence_s() == 500


def test_a_time_in_which_this_process_slept_is_nobodys_age():
    clock = Clock()
    peers = Peers(0, clock)
    see(peers, clock, elsewhere(1, 1))
    clock.now += 500
    see(peers, clock, elsewhere(1, 1))

    peers.excuse(499)

    seen = peers.all()[1]
    assert seen.heard_s == seen.still_s == 1


def test_the_states_of_ranks_are_those_they_said_last():
    clock = Clock()
    peers = Peers(0, clock)

    see(peers, clock, elsewhere(0, 1), replace(elsewhere(1, 1), state="done"))
    assert peers.anyone_is("living")
    see(peers, clock, replace(elsewhere(0, 2), state="failed"))
    assert not peers.anyone_is("living", "left")
    assert peers.anyone_is("done", "left")


def test_a_neighbour_is_seen_to_run_to_stop_and_to_be_gone_once_its_last_words_were_looked_for():
    clock = Clock()
    peers = Peers(0, clock)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            told = replace(Heartbeat.of(1).now(), pid=child.pid)
            see(peers, clock, told)
            assert peers.all()[1].process == "running"

            child.send_signal(signal.SIGSTOP)
            wait_for(lambda: peers.all()[1].process == "stopped")
            clock.now += 30
            assert peers.all()[1].process_s == 30

            peers.kill([1])
            wait_for(lambda: peers.all()[1].process == "running")
        finally:
            child.kill()
    assert peers.all()[1].process == "running"
    clock.now += 1
    see(peers, clock, told)
    assert peers.all()[1].process == "gone"


def test_a_rank_of_another_machine_cannot_be_seen():
    peers = Peers(0)

    assert peers.process_of(elsewhere(1, 1)) is None
    assert peers.process_of(Heartbeat.of(0)) == "running"
    assert Heartbeat.of(0).pid == os.getpid()


def wait_for(claim) -> None:
    end = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.01)
