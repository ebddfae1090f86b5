"""A process whose parent is gone is asked to end, so that none trains on unseen."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = "LUTHIER_PARENT"
"""Where the parent tells its number; what other programs start is not ended by us."""

PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


def end_with_parent() -> None:
    """Has Linux send SIGTERM to this process when the one that launched it is gone."""
    if sys.platform != "linux" or os.environ.pop(PARENT, None) != str(os.getppid()):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went in between
        os.kill(os.getpid(), signal.SIGTERM)
