"""what a rank says of itself"""

from __future__ import annotations

import threading

from luthier.processes.watch.beat import MOST_FRAMES, Beat, Pulse, main_stack, stack_of


def test_a_beat_survives_its_text():
    pulse = Pulse(3)
    pulse.mark(7, "training")
    pulse.end("failed", 'ValueError: "x"\n', ("a.py:1 f",))

    beat = pulse.beat()

    assert Beat.from_json(beat.to_json()) == beat
    assert (beat.rank, beat.step, beat.state, beat.stack) == (3, 7, "failed", ("a.py:1 f",))


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
    pulse = Pulse(0)
    first = pulse.beat()
    pulse.mark(1, "training")
    marked = pulse.beat()
    elsewhere = pulse.beat()

    assert first.moves < marked.moves < elsewhere.moves

    pulse.cut_off(("a.py:1 f",))
    one, other = pulse.beat(), pulse.beat()
    assert one.moves == other.moves
    assert one.count < other.count
