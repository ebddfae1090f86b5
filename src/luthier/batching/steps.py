"""A data set -> the optimizer steps of an epoch, each planned and cut for this rank."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, Protocol

import datasets
import torch
from torch.utils.data import DataLoader, Sampler

from luthier.batching.batch import MicroBatch, Step
from luthier.batching.padded import pad
from luthier.batching.plan import plan_examples
from luthier.batching.streamed import StreamedTable
from luthier.batching.tree import build_tree
from luthier.example import Example, read_examples, used_columns
from luthier.processes.signals import held, let_first_pass


class EpochOrder(Protocol):
    """The order of the examples of one epoch."""

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next."""


class StepSampler(Sampler[list[int]]):
    """Cuts an order of examples into the groups that make one optimizer update each.

    Args:
        order: the examples of an epoch.
        examples_per_step: per-device batch x accumulation x world size.
        multiple: with it, examples beyond the last whole multiple are left out of the epoch
            (`dataloader_drop_last`: per-device batch x world size); 1 keeps all.
    """

    def __init__(self, order: EpochOrder, examples_per_step: int, multiple: int = 1) -> None:
        self.order = order
        self.examples_per_step = examples_per_step
        self.num_examples = len(order) - len(order) % multiple

    def __len__(self) -> int:
        return -(-self.num_examples // self.examples_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        group: list[int] = []
        for count, index in enumerate(self.order, 1):
            if count > self.num_examples:
                break
            group.append(index)
            if len(group) == self.examples_per_step:
                yield group
                group = []
        if group:
            yield group

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next."""
        self.order.set_epoch(epoch)


@dataclass(frozen=True)
class StepBuilder:
    """Makes a rank's `Step` of the examples of one update.

    The sequences of an example stay together. The documents of a packed one do not see each other,
    so each is planned and placed for itself: the loss of a step is a sum over all of them, wherever
    they are computed.

    Attributes:
        dataset: a table of `luthier.example.schema`.
        pad_token_id: fills the rectangles.
        token_budget: the most tokens of a micro-batch that are computed: padding counts, a shared
            prefix counts once.
        rank: this process.
        world_size: all processes.
        layout: rectangles, which every model understands, or token trees.
        share_prefixes: whether a tree computes once what examples begin with alike.
    """

    dataset: datasets.Dataset | StreamedTable
    pad_token_id: int
    token_budget: int
    rank: int = 0
    world_size: int = 1
    layout: Literal["tree", "padded"] = "padded"
    share_prefixes: bool = False

    @cached_property
    def _table(self) -> Any:
        if isinstance(self.dataset, StreamedTable):
            return self.dataset
        return self.dataset.with_format("arrow", columns=used_columns(self.dataset.column_names))

    def __call__(self, indices: Sequence[int]) -> Step:
        """The micro-batches of this rank; counts are those of all ranks, known without asking."""
        rows = list(map(int, indices))
        read = read_examples(self._table[rows], rows)
        examples = [part for each in read for part in each.apart()]
        plan = plan_examples(
            examples,
            self.world_size,
            self.token_budget,
            is_padded=self.layout == "padded",
            share_prefixes=self.share_prefixes,
        )
        return Step(
            micro_batches=tuple(
                self._build([examples[each] for each in positions]) for positions in plan[self.rank]
            ),
            num_units=sum(each.num_units for each in read),
            num_tokens=sum(len(each.input_ids) for each in read),
            num_examples=len(read),
        )

    def _build(self, examples: Sequence[Example]) -> MicroBatch:
        if self.layout == "padded":
            return pad(examples, self.pad_token_id)
        return build_tree(examples, share_prefixes=self.share_prefixes)


class _Indices(torch.utils.data.Dataset[int]):
    """Row numbers; the rows themselves are fetched a step at a time by the builder."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class StepLoader(DataLoader[int]):
    """Yields a `Step` for every optimizer update of an epoch.

    Draws nothing from torch's global generator, so the run's random numbers do not depend on how
    often an epoch is begun.
    """

    def __init__(self, sampler: StepSampler, builder: StepBuilder, **options: Any) -> None:
        super().__init__(
            _Indices(len(builder.dataset)),
            batch_sampler=sampler,
            collate_fn=builder,
            generator=torch.Generator(),
            worker_init_fn=_begin_worker,
            **options,
        )

    def __iter__(self) -> Any:
        with held():  # workers start here
            return super().__iter__()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next."""
        assert isinstance(self.batch_sampler, StepSampler)
        self.batch_sampler.set_epoch(epoch)


def _begin_worker(worker: int) -> None:
    """Has a loader's worker stay while its reader is asked to stop, and go silently after it."""
    let_first_pass()
    let_reader_go()


def let_reader_go() -> None:
    """Has a loader's worker say nothing when the process that reads from it has ended.

    After Ctrl-C a worker may still be handing over a step; the thread that does it would print the
    broken connection through `sys.excepthook`. A worker's other errors travel to the reader.
    """

    def tell(
        kind: type[BaseException], problem: BaseException, traceback: TracebackType | None
    ) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            sys.__excepthook__(kind, problem, traceback)

    sys.excepthook = tell
