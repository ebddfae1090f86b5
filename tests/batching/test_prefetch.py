"""one item ahead: the same items, problems in their place, no thread left behind"""

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from luthier.batching.prefetch import Prefetch


class Counted:
    """Counts what is drawn from it; raises at the item `fails_at`."""

    def __init__(self, length, fails_at=None):
        self.length = length
        self.fails_at = fails_at
        self.drawn = 0
        self.threads = set()

    def __iter__(self):
        return self

    def __next__(self):
        self.threads.add(threading.current_thread())
        if self.drawn == self.length:
            raise StopIteration
        self.drawn += 1
        if self.drawn == self.fails_at:
            raise ValueError("item cannot be made")
        return self.drawn


@pytest.mark.parametrize("length", [0, 1, 7])
def test_items_come_whole_and_in_order(length):
    assert list(Prefetch(range(length))) == list(range(length))


def test_an_end_stays_an_end():
    items = Prefetch([1])

    assert [*items, *items] == [1]


def test_nothing_is_drawn_before_it_is_asked_for_and_one_item_beyond_after():
    source = Counted(9)
    items = Prefetch(source)

    assert source.drawn == 0
    for given in (1, 2, 3):
        assert next(items) == given
        assert source.drawn <= given + 1
    items.close()
    assert source.drawn <= 4


def test_items_are_made_on_one_other_thread():
    source = Counted(5)

    list(Prefetch(source))

    assert len(source.threads) == 1
    assert threading.current_thread() not in source.threads


def test_a_problem_comes_in_the_place_of_its_item_and_ends_the_items():
    items = Prefetch(Counted(9, fails_at=3))

    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="cannot be made"):
        next(items)
    assert list(items) == []


def test_the_thread_ends_with_the_items():
    source = Counted(3)

    list(Prefetch(source))

    (thread,) = source.threads
    thread.join(20)
    assert not thread.is_alive()


def test_the_thread_ends_when_it_is_closed():
    source = Counted(100)
    items = Prefetch(source)
    next(items)

    items.close()

    (thread,) = source.threads
    assert not thread.is_alive()
    assert list(items) == []


def test_the_thread_ends_when_the_last_reference_is_dropped():
    source = Counted(100)
    items = Prefetch(source)
    next(items)
    gone = weakref.ref(items)

    del items
    gc.collect()

    assert gone() is None
    (thread,) = source.threads
    thread.join(20)
    assert not thread.is_alive()


def test_an_item_is_not_lost_when_the_wait_for_it_is_interrupted(monkeypatch):
    items = Prefetch(Counted(3))
    assert next(items) == 1
    waiting = type(items._next).exception

    def interrupt(future, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(items._next), "exception", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(items)
    monkeypatch.setattr(type(items._next), "exception", waiting)

    assert list(items) == [2, 3]


@pytest.mark.parametrize("ending", ["", "raise KeyboardInterrupt"])
def test_the_interpreter_ends_while_items_are_left(ending):
    program = (
        "import itertools\n"
        "from luthier.batching.prefetch import Prefetch\n"
        "items = Prefetch(itertools.count())\n"
        f"print(next(items), flush=True)\n{ending}\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )

    assert ended.stdout.strip() == "0"
    assert "Prefetch" not in ended.stderr
    assert "hread" not in ended.stderr
