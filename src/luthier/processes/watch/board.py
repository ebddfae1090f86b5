"""Where ranks leave their beats for each other: a key-value store that all of them reach."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from luthier.processes.watch.beat import Beat
from luthier.processes.watch.judge import Verdict

PREFIX = "luthier/watch"
OPERATION_TIMEOUT = timedelta(seconds=30)


class Board:
    """A store of the process group's kind, by a connection of its own.

    A store's operations are not bounded in time: one whose server is stopped blocks for ever. So
    this is for a thread that nothing depends on.

    Args:
        store: any store of torch.distributed, such as that of the default group.
    """

    def __init__(self, store: Any) -> None:
        self._original = store
        self._known: set[int] = set()
        self.reconnect()

    def reconnect(self) -> None:
        """Begins a connection anew; the old one is of no use after an error."""
        self._store = dist.PrefixStore(PREFIX, self._original.clone())
        self._store.set_timeout(OPERATION_TIMEOUT)

    def publish(self, beat: Beat) -> None:
        """Leaves a beat in the place of this rank's last one."""
        self._store.set(f"beat/{beat.rank}", beat.to_json())

    def read(self, ranks: Iterable[int]) -> dict[int, Beat]:
        """The last beats of these ranks; of one that has not made any, nothing."""
        wanted = list(ranks)
        for rank in wanted:
            if rank not in self._known and self._store.check([f"beat/{rank}"]):
                self._known.add(rank)
        there = [rank for rank in wanted if rank in self._known]
        if not there:
            return {}
        texts = self._store.multi_get([f"beat/{rank}" for rank in there])
        return {rank: Beat.from_json(text) for rank, text in zip(there, texts, strict=True)}

    def post(self, verdict: Verdict) -> None:
        """Tells all ranks why the run ends; the first to say it is believed."""
        self._store.compare_set("verdict", "", verdict.to_json())

    def posted(self) -> Verdict | None:
        """Why the run ends, as some rank has said; None while it goes on."""
        if not self._store.check(["verdict"]):
            return None
        return Verdict.from_json(self._store.get("verdict"))
