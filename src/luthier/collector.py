"""Python's garbage collector, at rest while the heavy libraries are imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def resting_collector() -> Iterator[None]:
    """Imports of torch and all that stands on it take a fifth less time in this block.

    They make a million objects that stay as long as the process, and the collector would look
    through them again and again, then and at each of its later rounds; it leaves them alone for
    good. Where torch is there already nothing is left to win: the objects of a caller's process,
    the model of an earlier run among them, stay the collector's business.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
