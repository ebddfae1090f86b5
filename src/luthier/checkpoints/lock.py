"""Who writes to a run's folder: one run at a time, and none that is dead."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from luthier.errors import CheckpointError

if os.name != "nt":  # Windows has no such locks; there the note in the file decides
    import fcntl

FILE_NAME = ".lock"

NUM_TRIES, PAUSE_S = 5, 0.1
"""Another process that only looks holds the lock for a moment."""


@dataclass(frozen=True)
class Holder:
    """Who holds a folder, as its lock file says."""

    pid: int  # of the first rank's process
    host: str  # its machine
    boot_id: str  # of that machine since it was started; a process id means nothing after another
    since: str  # the time, UTC
    launch: str = ""  # the launcher's run and process; the same after an elastic restart

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_dead(self) -> bool | None:
        """Whether its process is known to be over; None where that cannot be seen from here."""
        if self.host != socket.gethostname():
            return None
        if self.boot_id != boot_id():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return self.pid == os.getpid()


class OutputLock:
    """Keeps other runs out of a folder until it is released or this process is over.

    The system's lock on the file decides, which no death leaves behind; processes that are forked
    from this one do not hold it, and who only looks shares it. Where the file system has no locks,
    the note in the file decides. (The package filelock gives none of these three.)

    Args:
        folder: the run's; made when absent.

    Attributes:
        previous: who held the folder last and did not release it; None where nobody was cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE_NAME
        self.previous: Holder | None = None
        self._descriptor: int | None = None

    def acquire(self, launch: str = "") -> None:
        """Takes the lock for a launch, see `launch_of`; CheckpointError if another run has it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        is_locked = _try_lock(descriptor)
        self.previous = last_holder(self.file.parent)
        if is_locked is None:  # no locks here
            is_locked = self.previous is None or self.previous.is_dead is True
        if not is_locked:
            os.close(descriptor)
            raise CheckpointError(
                f"output_dir: {self.file.parent} is in use by "
                f"{self.previous or 'another process'}. Name another folder, or end that run; if "
                f"it is over, delete {self.file}."
            )
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        note = Holder(os.getpid(), socket.gethostname(), boot_id(), since, launch)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(asdict(note)).encode() + b"\n")
        self._descriptor = descriptor
        _held.add(descriptor)

    def release(self) -> None:
        """Lets others in; a second call does nothing."""
        if self._descriptor is not None:
            _held.discard(self._descriptor)
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def holder(folder: Path) -> Holder | None:
    """The run that writes to a folder now; None when there is none."""
    try:
        descriptor = os.open(folder / FILE_NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        is_free = _try_lock(descriptor, is_shared=True)
    finally:
        os.close(descriptor)
    found = last_holder(folder)
    if is_free is None:
        is_free = found is None or found.is_dead is True
    return None if is_free else found or Holder(0, "an unknown machine", "", "an unknown time")


def last_holder(folder: Path) -> Holder | None:
    """Who held a folder last and was cut off, or still holds it."""
    try:
        return Holder(**json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def launch_of(environment: Mapping[str, str]) -> str:
    """Names the launcher that started this process; a restart by it has the same name."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return ""
    run_id = environment["TORCHELASTIC_RUN_ID"]
    if run_id not in ("", "none"):  # named by its user, so it means one run on all machines
        return run_id
    return f"{socket.gethostname()}/{boot_id()}/{os.getppid()}"


def boot_id() -> str:
    """What tells one start of this machine from another; empty where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


_held: set[int] = set()


def _let_go_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _try_lock(descriptor: int, *, is_shared: bool = False) -> bool | None:
    """Whether the lock is ours, or shared with who looks; None where files have no locks."""
    if os.name == "nt":
        return None
    kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    for _ in range(1 if is_shared else NUM_TRIES):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):
            time.sleep(0 if is_shared else PAUSE_S)
        except OSError:
            return None
    return False
