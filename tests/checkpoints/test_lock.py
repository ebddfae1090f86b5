"""two runs cannot share a folder, a dead one does not keep it"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest

from luthier.checkpoints import lock as lock_module
from luthier.checkpoints.lock import FILE_NAME, Holder, OutputLock, boot_id, holder
from luthier.errors import CheckpointError

HOLD = """
import sys
from pathlib import Path
from luthier.checkpoints.lock import OutputLock
lock = OutputLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder until it is killed."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_another_process_holds_is_refused_and_the_holder_named(tmp_path, other):
    found = holder(tmp_path)

    assert found is not None
    assert found.pid == other.pid
    assert found.is_dead is False
    with pytest.raises(CheckpointError, match=f"in use by process {other.pid}"):
        OutputLock(tmp_path).acquire()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()

    lock = OutputLock(tmp_path)
    lock.acquire("launch")

    assert holder(tmp_path).pid == os.getpid()
    assert lock.previous is not None
    assert lock.previous.pid == other.pid
    lock.release()
    lock.release()
    assert holder(tmp_path) is None


def test_two_locks_of_one_process_exclude_each_other(tmp_path):
    first = OutputLock(tmp_path)
    first.acquire()

    with pytest.raises(CheckpointError, match="in use"):
        OutputLock(tmp_path).acquire()
    first.release()
    second = OutputLock(tmp_path)
    second.acquire()
    assert second.previous is None
    second.release()


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    """A killed run's data workers may outlive it for a while."""
    lock = OutputLock(tmp_path)
    lock.acquire()
    reader, writer = os.pipe()
    child_reader, child_writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.write(child_writer, b"!")
        os.read(reader, 1)
        os._exit(0)
    try:
        os.read(child_reader, 1)
        os.close(lock._descriptor)  # as the death of this process would
        lock_module._held.discard(lock._descriptor)

        assert holder(tmp_path) is None
    finally:
        for descriptor in (writer, reader, child_reader, child_writer):
            os.close(descriptor)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("note", "is_free"),
    [
        ({"host": "elsewhere"}, False),
        ({"boot_id": "before"}, True),
        ({"pid": 2**22 + 1}, True),
        ({"pid": os.getppid()}, False),
    ],
    ids=["other machine", "restarted", "dead", "alive"],
)
def test_without_locks_of_the_file_system_the_note_decides(tmp_path, monkeypatch, note, is_free):
    import socket

    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock_module.fcntl, "flock", unknown)
    left = Holder(os.getpid(), socket.gethostname(), boot_id(), "2026-01-01")
    (tmp_path / FILE_NAME).write_text(json.dumps(asdict(left) | note))

    assert (holder(tmp_path) is None) == is_free
    lock = OutputLock(tmp_path)
    if is_free:
        lock.acquire()
        lock.release()
    else:
        with pytest.raises(CheckpointError, match="in use"):
            lock.acquire()


def test_a_folder_without_a_lock_has_no_holder(tmp_path):
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
