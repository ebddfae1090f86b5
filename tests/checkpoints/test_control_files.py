"""what is asked of a run by files: by whom, and when it counts"""

from __future__ import annotations

import threading

import pytest

from luthier.checkpoints.control_files import (
    answer,
    ask,
    asked,
    forget_requests,
    take_up,
    wait_for_answer,
    was_stopped,
)
from luthier.checkpoints.lock import OutputLock
from luthier.errors import CheckpointError


@pytest.fixture
def lock(tmp_path):
    held = OutputLock(tmp_path)
    held.acquire()
    yield held
    held.release()


def test_a_request_is_seen_until_it_is_taken_up(lock, tmp_path):
    assert asked(tmp_path) == set()

    ask(tmp_path, "save")
    ask(tmp_path, "stop")

    assert asked(tmp_path) == {"save", "stop"}
    take_up(tmp_path, "save")
    assert asked(tmp_path) == {"stop"}


def test_nobody_asks_where_no_run_is_going_on(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder"):
        ask(tmp_path / "absent", "save")
    with pytest.raises(CheckpointError, match="no run is going on"):
        ask(tmp_path, "stop")

    assert list(tmp_path.iterdir()) == []


def test_a_new_run_forgets_what_an_earlier_one_was_asked(lock, tmp_path):
    ask(tmp_path, "stop")
    assert was_stopped(tmp_path)

    forget_requests(tmp_path)

    assert asked(tmp_path) == set()
    assert not was_stopped(tmp_path)


def test_who_asked_for_a_checkpoint_learns_which_it_is(lock, tmp_path):
    ask(tmp_path, "save")
    take_up(tmp_path, "save")
    threading.Timer(0.3, answer, (tmp_path, {"step": 3, "checkpoint": "checkpoint-3"})).start()

    found = wait_for_answer(tmp_path, "save")

    assert found == {"step": 3, "checkpoint": "checkpoint-3"}


def test_an_old_answer_is_not_taken_for_a_new_one(lock, tmp_path):
    for step in (3, 5):
        ask(tmp_path, "save")
        take_up(tmp_path, "save")
        answer(tmp_path, {"step": step, "checkpoint": None})
        assert wait_for_answer(tmp_path, "save")["step"] == step

    ask(tmp_path, "save")
    lock.release()

    with pytest.raises(CheckpointError, match="ended before it could save"):
        wait_for_answer(tmp_path, "save")


def test_a_stop_is_answered_when_the_run_has_ended(lock, tmp_path):
    ask(tmp_path, "stop")
    take_up(tmp_path, "stop")
    answer(tmp_path, {"step": 7, "checkpoint": "checkpoint-7"})
    threading.Timer(0.3, lock.release).start()

    found = wait_for_answer(tmp_path, "stop")

    assert found["step"] == 7
    assert lock._descriptor is None


def test_a_run_that_ends_by_itself_has_nothing_to_answer(lock, tmp_path):
    ask(tmp_path, "stop")
    lock.release()

    assert wait_for_answer(tmp_path, "stop") == {}
