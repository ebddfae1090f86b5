"""The reference of a run: read once before training and kept, or held to be read with each step."""

# N reads, R tokens of an example

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow
import torch
import transformers
import xxhash
from numpy.typing import NDArray

from luthier import console
from luthier.arguments.record import Arguments
from luthier.batching.batch import MicroBatch
from luthier.batching.steps import StepBuilder
from luthier.data.cache import Store, cache_root, find_published, get_or_build, write_shard
from luthier.distributed.strategy import WORDS
from luthier.errors import ArgumentsError
from luthier.example import OF_TOKENS, REFERENCE, Example, ExampleSet, lists_of, where_learned
from luthier.modeling.dtypes import computed_dtype
from luthier.modeling.reference import Reference
from luthier.modeling.sharded import gathering
from luthier.processes.ranks import agree_all, gather_objects, rank

if TYPE_CHECKING:
    from luthier.training.loop import Trainer

COLUMN = f"{OF_TOKENS}{REFERENCE}"

OF_CONTENT = ("input_ids", "labels", "lengths")
"""Columns that decide what a reference says of a row."""

TOKENS_OF_A_SHARD = 1 << 18
"""A reading that is killed has lost no more than so many."""

ROWS_TOGETHER = 1 << 14
"""That are hashed at a time."""

TOLD_EVERY_S = 30.0


def settle_reference(trainer: Trainer, arguments: Arguments, other: Any = None) -> None:
    """Gives the trainer its reference, or tables of what that says of the rows, or both.

    Args:
        trainer: whose model is as the run begins with it, where it will compute, not yet wrapped.
        arguments: of the run.
        other: the model of `ref_model`, fitted for the same layout; None without.

    Raises:
        ArgumentsError: when the reference cannot be had as the run holds its weights.
    """
    model, stage, strategy = trainer.model, trainer.stage, trainer.strategy
    finetuning, is_trained = arguments.finetuning, arguments.training.do_train
    goes_on = bool(arguments.model.adapter_name_or_path) and not finetuning.create_new_adapter
    reference = Reference(
        model,
        is_new=is_trained and not (goes_on or finetuning.pissa_init),
        other=other,
        autocast=trainer.accelerator.autocast,
    )
    is_kept = is_trained and _read_before(trainer, arguments, reference)
    if is_kept and not stage.mismatches_answers:
        return
    is_free = reference.leaves_out or other is not None
    if is_trained and strategy.shards_parameters and not is_free:
        is_kept = stage.keeps_reference and not stage.mismatches_answers
        remedy = ", or set precompute_ref: true" if is_kept else ""
        raise ArgumentsError(
            f"stage: {finetuning.stage} reads its reference with every step, and with "
            f"{WORDS[strategy.name]} no copy of the first weights is held. Train a new adapter "
            f"(finetuning_type: lora), which is left out for that{remedy}."
        )
    held = reference.hold(model) if is_trained else "the model itself, since nothing is trained"
    what = "prompts with other answers are read" if is_kept else "it is read"
    console.info(f"reference: {held}; {what} with every step")
    trainer.reference = reference


def _read_before(trainer: Trainer, arguments: Arguments, reference: Reference) -> bool:
    """Whether the reference has said all of the rows before training, so that it is known."""
    asked, train = arguments.finetuning.precompute_ref, trainer.train_dataset
    is_apart = trainer.stage.packer(is_trained=True) is not None
    if (
        asked is False
        or train.num_examples is None
        or is_apart
        or not trainer.stage.keeps_reference
    ):
        return False
    reading = Reading(trainer, reference, cache_root(arguments.model.cache_dir))
    if asked == "auto":
        device, training = next(trainer.model.parameters()).device, arguments.training
        num_seen = training.num_train_epochs * len(train)
        if training.max_steps > 0:
            num_seen = training.max_steps * trainer.loaders.examples_per_step
        is_rare = num_seen < len(train) and not reading.knows(train)
        if is_rare or device.type != trainer.args.device.type:
            return False
    sets = trainer.eval_dataset
    evaluated = sets if isinstance(sets, dict) else {"": sets} if sets is not None else {}
    for dataset in (train, *evaluated.values()):
        read = reading.of(dataset)
        if read is None:
            console.warn(
                "the reference is read with every step, since not every machine of the run sees "
                "the folder of cache_dir"
            )
            return False
        dataset.beside = read
    return True


class Reading:
    """Has a reference read sets of examples, each rank its share, and keeps what it says.

    It is kept under the content of the reference, of the rows and of what computes, so another
    loss, or other settings of it, find it again.

    Args:
        trainer: whose model is read.
        reference: of it.
        root: where data is kept.
    """

    def __init__(self, trainer: Trainer, reference: Reference, root: Path) -> None:
        self.trainer, self.reference, self.root = trainer, reference, root
        dtype = computed_dtype(trainer.accelerator.mixed_precision, trainer.model)
        contents = gather_objects(reference.content(trainer.model))
        versions = [torch.__version__, transformers.__version__]
        self.ingredients = [*dict.fromkeys(contents), str(dtype), *versions]
        self._keys: dict[int, str] = {}

    def knows(self, dataset: ExampleSet) -> bool:
        """Whether the set was read before; every rank must call it."""
        return bool(gather_objects(find_published(self.root / self._key(dataset)) is not None)[0])

    def of(self, dataset: ExampleSet) -> datasets.Dataset | None:
        """What the reference says of each row, on disk; every rank must call it.

        Returns:
            A table of as many rows with one column, (R,) numbers each and NaN where nothing is
            learned; None where the folder of the first rank is not seen by all.
        """
        key, loaders, args = self._key(dataset), self.trainer.loaders, self.trainer.args
        builder = StepBuilder(
            dataset,
            loaders.pad_token_id,
            loaders.token_budget(args.per_device_eval_batch_size),
            args.process_index,
            args.world_size,
            loaders.layout,
            loaders.shares_prefixes,
        )
        lengths = dataset.lengths()
        groups = np.cumsum(lengths, dtype=np.int64) // TOKENS_OF_A_SHARD
        limits = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(lengths)]
        shards = [range(start, end) for start, end in pairwise(limits)]
        if rank() == 0:
            try:
                build = partial(self._build, builder, shards)
                published = get_or_build(self.root, key, build)
            finally:
                gather_objects(None)  # nothing is left to read
            said = "was read before" if published.was_there else "is kept"
            console.info(f"reference: it {said}, {len(dataset):,} rows ({key[:12]})")
        else:
            while (number := gather_objects(None)[0]) is not None:
                self._read(builder, shards[number])
        found = find_published(self.root / key)
        return found.open(key) if agree_all(found is not None) and found is not None else None

    def _build(
        self, builder: StepBuilder, shards: Sequence[range], store: Store
    ) -> Mapping[str, Any]:
        missing = [number for number in range(len(shards)) if number not in store.shards]
        num_rows = sum(len(shards[number]) for number in missing)
        console.info(f"reference: {num_rows:,} rows are read once, before training")
        told, done = time.monotonic(), 0
        for number in missing:
            gather_objects(number)
            numbers = self._read(builder, shards[number])
            write = partial(_write, [numbers[row] for row in shards[number]])
            store.add(write_shard(store.folder, number, write))
            done += len(shards[number])
            if time.monotonic() - told > TOLD_EVERY_S:
                told = time.monotonic()
                console.info(f"reference: {done:,} of {num_rows:,} rows are read")
        return {}

    def _read(self, builder: StepBuilder, rows: range) -> dict[int, NDArray[np.float32]]:
        """What the ranks together read of some rows."""
        own: dict[int, NDArray[np.float32]] = {}
        with gathering(self.trainer.model):
            for examples, logps_N in self.trainer.evaluation_oom.each(builder(rows), self._compute):
                for example in examples:
                    is_read_R = where_learned(example.labels, example.lengths)
                    numbers_R = np.full(len(is_read_R), np.nan, np.float32)
                    count = int(is_read_R.sum())
                    numbers_R[is_read_R], logps_N = logps_N[:count], logps_N[count:]
                    own[example.row] = numbers_R
        return {row: each for ranks in gather_objects(own) for row, each in ranks.items()}

    def _compute(self, batch: MicroBatch) -> tuple[Sequence[Example], NDArray[np.float32]]:
        model = self.trainer.model
        with self.reference.reading(model) as reference:
            here = batch.to(next(model.parameters()).device)
            read = self.trainer.stage.measure_reference(reference, here)
        return batch.examples, read.token_numbers[REFERENCE].float().cpu().numpy()

    def _key(self, dataset: ExampleSet) -> str:
        table = dataset.table
        if id(table) not in self._keys:
            digest = xxhash.xxh3_128()
            columns = [name for name in OF_CONTENT if name in table.column_names]
            rows = table.select_columns(columns).with_format("arrow")
            for start in range(0, len(rows) if rank() == 0 else 0, ROWS_TOGETHER):
                together = rows[start : start + ROWS_TOGETHER]
                for column in (together[name].combine_chunks() for name in columns):
                    lengths = column.value_lengths().fill_null(-1)
                    for numbers in (lengths, column.flatten()):
                        digest.update(numbers.to_numpy(zero_copy_only=False).tobytes())
            content = [*self.ingredients, gather_objects(digest.hexdigest())[0]]
            self._keys[id(table)] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return self._keys[id(table)]


def _write(numbers: Sequence[NDArray[np.float32]], path: Path) -> dict[str, Any]:
    table = pyarrow.table({COLUMN: lists_of(numbers, pyarrow.float32())})
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    return {}
