"""processes that encode rows: forked with all they need, and gone with their parent."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_all_start_methods, get_context
from typing import Any

from luthier.processes.signals import held, let_first_pass


def start_pool(num_workers: int, keep: Callable[[Any], None], what: Any) -> ProcessPoolExecutor:
    """A pool whose processes are running.

    A forked worker finds the tokenizer in its memory, where a fresh one would import and unpickle
    for seconds. It calls the tokenizer and Arrow only, never torch's threads.

    Args:
        num_workers: processes.
        keep: is called in each of them with `what`.
        what: all that they need beside their tasks.
    """
    method = "fork" if "fork" in get_all_start_methods() else "spawn"
    with warnings.catch_warnings(), held():  # a pool that is interrupted half started never ends
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        pool = ProcessPoolExecutor(
            num_workers,
            mp_context=get_context(method),
            initializer=_start_worker,
            initargs=(keep, what, os.getpid()),
        )
        wait([pool.submit(os.getpid) for _ in range(num_workers)])
    return pool


def _start_worker(keep: Callable[[Any], None], what: Any, parent: int) -> None:
    keep(what)
    let_first_pass(for_s=10)  # a pool that has lost a worker ends the others by it
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    if sys.platform != "win32":
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process with its parent: a forked one would hold the cache's lock for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
