"""A data set -> the optimizer steps of an epoch, each planned and cut for this rank."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments as LibraryArguments

from luthier.batching.batch import MicroBatch, Step
from luthier.batching.mismatched import distance, mismatch, prompt_of
from luthier.batching.order import LengthGroupedOrder, SequentialOrder, ShuffledOrder
from luthier.batching.plan import plan_examples
from luthier.batching.prefixes import find_group_prefixes
from luthier.batching.split import build
from luthier.errors import DataError
from luthier.example import Example, ExampleSet
from luthier.processes.signals import held, let_first_pass

if TYPE_CHECKING:
    from luthier.arguments.record import Arguments

SATURATING_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Computed tokens of a micro-batch beyond which a device gets no faster, by device type."""

LARGEST = 1000
"""Examples of the most tokens that are looked at for the largest micro-batch."""

EVAL_GROUP = 16
"""Evaluation batches that are planned together, so that rows of like length are padded together."""


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

    Attributes:
        first: the step that an epoch begins with; those before it were made already.
    """

    def __init__(self, order: EpochOrder, examples_per_step: int, multiple: int = 1) -> None:
        self.order = order
        self.examples_per_step = examples_per_step
        self.num_examples = len(order) - len(order) % multiple
        self.first = 0

    def __len__(self) -> int:
        return -(-self.num_examples // self.examples_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        indices = islice(self.order, self.first * self.examples_per_step, self.num_examples)
        while group := list(islice(indices, self.examples_per_step)):
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
    """

    dataset: ExampleSet  # the examples of the order
    pad_token_id: int  # fills padded batches
    token_budget: int
    """The most tokens of a micro-batch that are computed: padding counts, a shared prefix counts
    once."""
    rank: int = 0  # this process
    world_size: int = 1  # all processes
    layout: Literal["tree", "padded"] = "padded"
    """Padded batches, which every model understands, or token trees."""
    share_prefixes: bool = False  # whether a tree computes once what examples begin with alike
    mismatches: int | None = None
    """The most tokens of prompts with other answers that are read, not learned; None for none of
    them."""
    distance: int | None = None
    """How many rows before it the other answer stands, in the whole table; None where it is that of
    a row of the step."""

    def __call__(self, indices: Sequence[int]) -> Step:
        """The micro-batches of this rank; counts are those of all ranks, known without asking."""
        read = self.dataset[list(map(int, indices))]
        measured: Sequence[Example] = ()
        if self.mismatches is not None:
            measured = mismatch(read, self._others(read), self.mismatches)
        return Step(
            micro_batches=self._plan([part for each in read for part in each.apart()]),
            num_units=sum(each.num_units for each in read),
            num_tokens=sum(len(each.input_ids) for each in read),
            num_examples=len(read),
            measured=self._plan(measured) if measured else (),
        )

    def _others(self, read: Sequence[Example]) -> list[Example]:
        """The example whose answer each one's prompt is put before."""
        if self.distance is None and len(read) > 1:
            back = distance([prompt_of(each) for each in read])
            return [read[at - back] for at in range(len(read))]
        back = self.distance or 1
        return self.dataset[[(each.row - back) % len(self.dataset) for each in read]]

    def _plan(self, examples: Sequence[Example]) -> tuple[MicroBatch, ...]:
        how = {"is_padded": self.layout == "padded", "share_prefixes": self.share_prefixes}
        plan = plan_examples(examples, self.world_size, self.token_budget, **how)
        names = {name for each in examples for name in each.token_numbers}
        return tuple(
            build([examples[each] for each in positions], names, self.pad_token_id, **how)
            for positions in plan[self.rank]
        )


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
            _Indices(len(sampler.order)),
            batch_sampler=sampler,
            collate_fn=builder,
            generator=torch.Generator(),
            worker_init_fn=_begin_worker,
            **options,
        )

    def __iter__(self) -> Any:
        with held():  # workers start here
            return super().__iter__()

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Chooses the epoch whose order comes next, and the step of it that comes first."""
        assert isinstance(self.batch_sampler, StepSampler)
        self.batch_sampler.first = first
        self.batch_sampler.set_epoch(epoch)


@dataclass
class StepLoaders:
    """Makes the loaders of a run's data sets, once its layout is known."""

    arguments: Arguments  # of the run
    args: LibraryArguments  # the same as transformers takes them
    pad_token_id: int  # fills padded batches
    layout: Literal["tree", "padded"] = "padded"  # how examples share a micro-batch
    shares_prefixes: bool = False  # whether a tree computes what examples begin with alike once
    mismatches: bool = False
    """Whether prompts with other answers are read before a step; see `StepBuilder`."""

    @property
    def examples_per_step(self) -> int:
        """Examples of one optimizer update, all ranks together."""
        training = self.arguments.training
        batch, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
        return int(batch * steps * self.args.world_size)

    def train(self, dataset: ExampleSet) -> StepLoader:
        """A loader whose items are this rank's share of each optimizer step.

        Raises:
            DataError: if no step is left of the data.
        """
        args, per_step = self.args, self.examples_per_step
        seed = args.seed if args.data_seed is None else args.data_seed
        order: EpochOrder
        if dataset.num_examples is None:  # in the order it has, as many as are asked for
            order = SequentialOrder(args.max_steps * per_step)
        elif args.train_sampling_strategy == "sequential":
            order = SequentialOrder(dataset.num_examples)
        elif args.train_sampling_strategy == "group_by_length":
            order = LengthGroupedOrder(dataset.lengths(), per_step, seed)
        else:
            order = ShuffledOrder(dataset.num_examples, seed)
        batch_size = self.arguments.training.per_device_train_batch_size
        of_all_devices = batch_size * args.world_size
        sampler = StepSampler(order, per_step, of_all_devices if args.dataloader_drop_last else 1)
        if not len(sampler):
            raise DataError(
                "dataloader_drop_last leaves out what does not fill a batch on every device, "
                f"{of_all_devices:,} examples, and there are {len(dataset):,}: nothing would be "
                "learned. Lower per_device_train_batch_size, or leave dataloader_drop_last out."
            )
        return self._loader(dataset, sampler, batch_size)

    def evaluate(self, dataset: ExampleSet) -> StepLoader:
        """A loader over a whole evaluation set, in groups whose rows are sorted by length."""
        batch_size = self.arguments.training.per_device_eval_batch_size
        group = batch_size * self.args.world_size * EVAL_GROUP
        sampler = StepSampler(SequentialOrder(len(dataset)), group)
        back = None
        if self.mismatches:
            num_rows = len(dataset)
            starts = range(0, num_rows, group)
            parts = (dataset[range(start, min(start + group, num_rows))] for start in starts)
            back = distance([prompt_of(each) for part in parts for each in part])
        return self._loader(dataset, sampler, batch_size, back)

    def token_budget(self, batch_size: int) -> int:
        """The most tokens of a micro-batch that are computed: padding counts, shared ones once.

        Never more than a full batch as the user wrote it, and not more than saturates the device;
        `tokens_per_micro_batch` overrides both.
        """
        if self.arguments.training.tokens_per_micro_batch is not None:
            return self.arguments.training.tokens_per_micro_batch
        saturating = SATURATING_TOKENS.get(self.args.device.type, SATURATING_TOKENS["cuda"])
        return min(batch_size * self.arguments.data.cutoff_len, saturating)

    def largest_micro_batch(self, dataset: ExampleSet) -> tuple[int, int]:
        """The most tokens of a micro-batch of training, and those of the longest sequence."""
        longest = dataset.longest()
        if dataset.num_examples is None:
            largest = longest * len(dataset.take(1)[0].sequence_lengths)
        else:
            most = np.argsort(-np.asarray(dataset.lengths()), kind="stable")[:LARGEST]
            parts = [part for each in dataset[most.tolist()] for part in each.apart()]
            largest = max(map(self._size, parts))
        budget = self.token_budget(self.arguments.training.per_device_train_batch_size)
        return max(largest, min(budget, largest * self.examples_per_step)), longest

    def _size(self, example: Example) -> int:
        """The tokens that are computed of an example."""
        lengths = example.sequence_lengths
        if self.layout == "padded":
            return max(lengths) * len(lengths)
        if not self.shares_prefixes or len(lengths) == 1:
            return sum(lengths)
        return find_group_prefixes([example.sequences()])[1][0]

    def _loader(
        self,
        dataset: ExampleSet,
        sampler: StepSampler,
        batch_size: int,
        distance: int | None = None,
    ) -> StepLoader:
        args = self.args
        has_workers = dataset.num_examples is not None  # others are read in one process, in order
        builder = StepBuilder(
            dataset,
            self.pad_token_id,
            self.token_budget(batch_size),
            args.process_index,
            args.world_size,
            self.layout,
            self.shares_prefixes,
            self.arguments.data.cutoff_len if self.mismatches else None,
            distance,
        )
        return StepLoader(
            sampler,
            builder,
            num_workers=args.dataloader_num_workers if has_workers else 0,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers and has_workers,
            prefetch_factor=args.dataloader_prefetch_factor if has_workers else None,
        )


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
