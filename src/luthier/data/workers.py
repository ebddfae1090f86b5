"""processes that encode rows: forked with all they need, and gone with their parent."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_all_start_methods, get_context
from typing import Any, Generic, TypeVar

from luthier.errors import DataError
from luthier.processes.signals import held, let_first_pass

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Generic[Task, Result]):
    """Calls a function of one task after the other, here or in processes that begin at once.

    A forked worker finds the tokenizer in its memory, where a fresh one would import and unpickle
    for seconds. It calls the tokenizer and Arrow only, never torch's threads.

    Args:
        call: what is called; to the others only tasks travel.
        num_workers: processes; 0 for this one.
    """

    def __init__(self, call: Callable[[Task], Result], num_workers: int) -> None:
        self.call, self.num_workers = call, num_workers
        self._pool: ProcessPoolExecutor | None = None
        if not num_workers:
            return
        method = "fork" if "fork" in get_all_start_methods() else "spawn"
        with warnings.catch_warnings(), held():  # a pool interrupted half started never ends
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            self._pool = ProcessPoolExecutor(
                num_workers,
                mp_context=get_context(method),
                initializer=_begin,
                initargs=(call, os.getpid()),
            )
            wait([self._pool.submit(os.getpid) for _ in range(num_workers)])

    def results(
        self, tasks: Iterable[Task], num_ahead: int, fewer: str
    ) -> Iterator[tuple[Task, Result]]:
        """Each task with what became of it, in order; a worker has up to `num_ahead` waiting.

        Raises:
            DataError: if a worker was killed; it says of what `fewer` are to be set.
        """
        if self._pool is None:
            for task in tasks:
                yield task, self.call(task)
            return
        tasks, waiting = iter(tasks), deque[tuple[Task, Future[Result]]]()
        try:
            while True:
                for task in islice(tasks, self.num_workers * num_ahead - len(waiting)):
                    waiting.append((task, self._pool.submit(_run, task)))
                if not waiting:
                    return
                task, future = waiting.popleft()
                yield task, future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process that encoded data was killed, most often because memory ran out. Start "
                f"again with fewer {fewer}."
            ) from error

    def close(self) -> None:
        """Ends them."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_call: Callable[[Any], Any]


def _run(task: Any) -> Any:
    return _call(task)


def _begin(call: Callable[[Any], Any], parent: int) -> None:
    global _call
    _call = call
    let_first_pass(for_s=10)  # a pool that has lost a worker ends the others by it
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    if sys.platform != "win32":
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process with its parent: a forked one would hold the cache's lock for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
