"""The library's trainer, whose batch is a whole optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import datasets
import torch
from transformers import Trainer
from transformers import TrainingArguments as LibraryArguments

from luthier.arguments.record import Arguments
from luthier.batching.ahead import Ahead
from luthier.batching.batch import Step
from luthier.batching.order import LengthGroupedOrder, SequentialOrder, ShuffledOrder
from luthier.batching.steps import EpochOrder, StepBuilder, StepLoader, StepSampler
from luthier.batching.streamed import StreamedTable
from luthier.data.stream import Stream
from luthier.errors import DataError
from luthier.stages.stage import Stage

SATURATING_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Computed tokens of a micro-batch beyond which a device gets no faster, by device type."""

EVAL_GROUP = 16
"""Evaluation batches that are planned together, so that rows of like length share a rectangle."""


class SteppingTrainer(Trainer):
    """Where transformers' trainer takes its batches from.

    The loader yields one `Step` for each optimizer update: all examples that
    `per_device_train_batch_size x gradient_accumulation_steps x world_size` stands for. The step's
    micro-batches are our own choice, so to transformers every step is one batch and its
    `args.gradient_accumulation_steps` is 1; callbacks are told the user's, see `callbacks/told.py`.

    Attributes:
        arguments: the run's configuration.
        stage: what is learned.
        layout: how examples share a micro-batch; taken before training or evaluating.
        shares_prefixes: whether a tree computes what examples begin with alike once.
        steps_table: what the steps of training are read from; None before there are any.
    """

    arguments: Arguments
    stage: Stage
    layout: Literal["tree", "padded"] = "padded"
    shares_prefixes: bool = False
    steps_table: Any = None
    _stream: Stream | None
    _steps: Ahead[Step] | None = None

    @property
    def examples_per_step(self) -> int:
        """Examples of one optimizer update, all ranks together."""
        training = self.arguments.training
        return int(
            training.per_device_train_batch_size
            * training.gradient_accumulation_steps
            * self.args.world_size
        )

    def get_total_train_batch_size(self, args: LibraryArguments) -> int:
        """Examples of one optimizer update, as transformers asks for it."""
        return self.examples_per_step

    def get_train_dataloader(self) -> StepLoader:
        """A loader whose items are this rank's share of each optimizer step."""
        drop_last = self.args.dataloader_drop_last
        sampler = StepSampler(
            self._train_order(),
            self.examples_per_step,
            self.args.per_device_train_batch_size * self.args.world_size if drop_last else 1,
        )
        if not len(sampler):
            raise DataError(
                "dataloader_drop_last leaves out what does not fill a batch on every device, "
                f"{self.args.per_device_train_batch_size * self.args.world_size:,} examples, and "
                f"there are {len(self.train_dataset):,}: nothing would be learned. Lower "
                "per_device_train_batch_size, or leave dataloader_drop_last out."
            )
        batch_size = self.arguments.training.per_device_train_batch_size
        dataset = self.train_dataset
        if self._stream is not None:
            dataset = StreamedTable(self._stream, sampler.num_examples)
        self.steps_table = dataset
        return self._step_loader(dataset, sampler, batch_size)

    def get_eval_dataloader(self, eval_dataset: str | datasets.Dataset | None = None) -> StepLoader:
        """A loader over a whole evaluation set, in groups whose rows are sorted by length."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        batch_size = self.arguments.training.per_device_eval_batch_size
        group = batch_size * self.args.world_size * EVAL_GROUP
        return self._step_loader(
            dataset, StepSampler(SequentialOrder(len(dataset)), group), batch_size
        )

    def _train_order(self) -> EpochOrder:
        if self._stream is not None:
            return SequentialOrder(self.args.max_steps * self.examples_per_step)
        num_examples = len(self.train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        match self.args.train_sampling_strategy:
            case "sequential":
                return SequentialOrder(num_examples)
            case "group_by_length":
                lengths = self.train_dataset["num_tokens"]
                return LengthGroupedOrder(lengths, self.examples_per_step, seed)
            case _:
                return ShuffledOrder(num_examples, seed)

    def _step_loader(
        self, dataset: datasets.Dataset | StreamedTable, sampler: StepSampler, batch_size: int
    ) -> StepLoader:
        is_streamed = isinstance(dataset, StreamedTable)  # a stream has workers of its own
        assert self.processing_class.pad_token_id is not None
        builder = StepBuilder(
            dataset,
            self.processing_class.pad_token_id,
            self.token_budget(batch_size),
            self.args.process_index,
            self.args.world_size,
            self.layout,
            self.shares_prefixes,
        )
        return StepLoader(
            sampler,
            builder,
            num_workers=0 if is_streamed else self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers and not is_streamed,
            prefetch_factor=None if is_streamed else self.args.dataloader_prefetch_factor,
        )

    def token_budget(self, batch_size: int) -> int:
        """The most tokens of a micro-batch that are computed: padding counts, shared ones once.

        Never more than a full batch as the user wrote it, and not more than saturates the device;
        `tokens_per_micro_batch` overrides both.
        """
        if self.arguments.training.tokens_per_micro_batch is not None:
            return self.arguments.training.tokens_per_micro_batch
        saturating = SATURATING_TOKENS.get(self.args.device.type, SATURATING_TOKENS["cuda"])
        return min(batch_size * self.arguments.data.cutoff_len, saturating)

    def largest_micro_batch(self) -> tuple[int, int]:
        """The most tokens of a micro-batch of training, and those of the longest example."""
        if self._stream is not None:
            longest = self.arguments.data.cutoff_len
        else:
            longest = max(self.train_dataset["num_tokens"][:])
        budget = self.token_budget(self.arguments.training.per_device_train_batch_size)
        return max(longest, min(budget, longest * self.examples_per_step)), longest

    def get_batch_samples(
        self, epoch_iterator: Iterator[Step], num_batches: int, device: torch.device
    ) -> tuple[list[Step], None]:
        """The next step, built while the last one computed; its units are already counted."""
        if self._steps is None or self._steps.source is not epoch_iterator:
            self._steps = Ahead(epoch_iterator)
        return [step for step in [next(self._steps, None)] if step is not None], None
