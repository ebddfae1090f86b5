"""The next item is made on another thread while the current one is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, cast

import torch

T = TypeVar("T")

_END = object()
"""What the other thread gives when the source has no more items."""


class Prefetch(Iterator[T], Generic[T]):
    """Gives the items of an iterable, each made while the one before it is used.

    Nothing is drawn before the first item is asked for, and never more than one item (or the end)
    beyond what was given. What the source raises is raised in place of the item; after that the
    items are at an end. The thread ends with the items, with `close`, when the last reference is
    dropped, and before the interpreter does; an item that is being made is then finished.

    Args:
        source: is iterated on this thread, its items are made on the other one, one at a time.

    Attributes:
        source: as it was given.
    """

    def __init__(self, source: Iterable[T]) -> None:
        self.source = source
        self._items = iter(source)
        self._next: Future[T | object] | None = None
        self._is_at_end = False
        # a fresh thread would page-lock memory through the first device, whatever the rank's is
        is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        device = torch.cuda.current_device() if is_used else None
        self._thread = ThreadPoolExecutor(
            1, "prefetch", None if device is None else lambda: torch.cuda.set_device(device)
        )

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._is_at_end:
            raise StopIteration
        if self._next is None:
            self._next = self._thread.submit(next, self._items, _END)
        # waits; Ctrl-C meanwhile leaves the item to the next call
        problem = self._next.exception()
        try:
            if problem is not None:
                self.close()
                raise problem
        finally:
            del problem  # its traceback holds this frame
        item = self._next.result()
        if item is _END:
            self.close()
            raise StopIteration
        self._next = self._thread.submit(next, self._items, _END)
        return cast(T, item)

    def close(self) -> None:
        """Ends the thread, after the item that is being made; there are no more items then."""
        self._is_at_end = True
        self._thread.shutdown(cancel_futures=True)
        self._next = None
