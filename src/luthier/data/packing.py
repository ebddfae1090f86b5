"""encoded rows -> a data set of packed examples, kept in the cache like them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from luthier.data.best_fit import best_fit
from luthier.data.blocks import BlockOptions, cut_blocks
from luthier.data.cache import Store, get_or_build, write_shard
from luthier.data.origins import join_origins, place
from luthier.data.report import Packing
from luthier.example import Example, as_batch, read_examples, schema

if TYPE_CHECKING:
    import datasets

TOKENS_TOGETHER = 1 << 22
"""Tokens that are read, and written, at a time."""

TOKENS_OF_A_SHARD = 1 << 26


class Packer(Protocol):
    """A way to make blocks of a data set."""

    @property
    def size(self) -> int:
        """The most tokens of a block."""

    def ingredients(self) -> dict[str, Any]:
        """What decides about the blocks beside the rows."""

    def blocks(self, dataset: datasets.Dataset) -> Iterator[Example]:
        """They, in order."""

    def line(self, packing: Packing) -> str:
        """What the console says."""


@dataclass(frozen=True)
class DocumentPacker:
    """Documents, cut where a block ends."""

    options: BlockOptions

    @property
    def size(self) -> int:
        """`cutoff_len`."""
        return self.options.cutoff_len

    def ingredients(self) -> dict[str, Any]:
        """The options."""
        return asdict(self.options)

    def blocks(self, dataset: datasets.Dataset) -> Iterator[Example]:
        """Of documents in the order of the data set."""
        return cut_blocks(_documents(dataset), self.options)

    def line(self, packing: Packing) -> str:
        """Says how documents stand in blocks."""
        counted = (
            f"{packing.num_rows:,} documents -> {packing.num_blocks:,} "
            f"{'blocks' if self.options.is_packed else 'examples'} of up to {self.size:,} tokens"
        )
        num_cut = packing.num_sequences - packing.num_rows
        if not self.options.is_packed:
            cut = f", long ones cut into {num_cut:,} further parts, nothing lost" if num_cut else ""
            return f"packing off: {counted}{cut}"
        filled = f"{packing.fill:.1%} filled".replace("%", " %")
        if not self.options.is_isolated:
            return f"packing: {counted}, {filled}; attention reaches across documents"
        return (
            f"packing: {counted}, {filled}; each of the {packing.num_sequences:,} documents and "
            "parts sees itself only"
        )


@dataclass(frozen=True)
class RowPacker:
    """Whole conversations side by side, by best fit."""

    size: int

    def ingredients(self) -> dict[str, Any]:
        """The size."""
        return {"best_fit": self.size}

    def blocks(self, dataset: datasets.Dataset) -> Iterator[Example]:
        """Of rows with ids and labels, none longer than a block."""
        import numpy

        lengths = dataset.with_format("numpy")["num_tokens"][:].tolist()
        groups = best_fit(lengths, self.size)
        table = dataset.with_format("arrow")
        waiting = iter(groups)
        while together := list(islice(waiting, max(TOKENS_TOGETHER // self.size, 1))):
            found = _placed(table[[number for group in together for number in group]])
            for group in together:
                members = list(islice(found, len(group)))
                yield Example(
                    numpy.concatenate([each.input_ids for each in members]),
                    numpy.concatenate([each.labels for each in members]),
                    sum(each.num_units for each in members),
                    tuple(len(each.input_ids) for each in members),
                    is_packed=True,
                    origin=join_origins(each.origin for each in members),
                )

    def line(self, packing: Packing) -> str:
        """Says what a step counts now."""
        rows = packing.num_rows / max(packing.num_blocks, 1)
        return (
            f"packing: {packing.num_rows:,} conversations -> {packing.num_blocks:,} blocks of up "
            f"to {self.size:,} tokens, {packing.fill:.1%} filled; a step counts blocks, of about "
            f"{rows:.1f} conversations that do not see each other (nothing is padded without "
            "packing either; then a step counts conversations)"
        ).replace("%", " %")


def pack(
    root: Path,
    key: str,
    name: str,
    dataset: datasets.Dataset,
    packer: Packer,
    *,
    overwrite: bool = False,
) -> tuple[datasets.Dataset, Packing, Path]:
    """The blocks of a data set, from the cache or made.

    Args:
        root: the cache.
        key: the hash of the data set and of the packer's ingredients.
        name: the part of the run's data.
        dataset: the rows.
        packer: makes the blocks.
        overwrite: whether to make them again.

    Returns:
        The blocks; what became of the rows; the folder with the blocks.
    """
    import datasets
    from datasets.table import MemoryMappedTable, concat_tables

    def build(store: Store) -> dict[str, Any]:
        packing = Packing(name, num_rows=len(dataset), size=packer.size)
        _write(store, packer.blocks(dataset), packing)
        return asdict(packing)

    published = get_or_build(root, key, build, overwrite=overwrite)
    packing = Packing(**(published.report | {"name": name, "was_cached": published.was_there}))
    tables = [MemoryMappedTable.from_file(str(file)) for file in published.files]
    blocks = datasets.Dataset(concat_tables(tables), fingerprint=key[:32])
    return blocks, packing, published.folder


def _write(store: Store, blocks: Iterator[Example], packing: Packing) -> None:
    """Shards of blocks, at least one; the counts go into `packing`."""
    batches = _batches(blocks, packing.size)
    for number in count():
        first = next(batches, None)
        if first is None and number:
            return
        write = partial(_write_shard, chain([first or []], batches), packing)
        store.add(write_shard(store.folder, number, write))


def _write_shard(batches: Iterable[list[Example]], packing: Packing, path: Path) -> dict[str, Any]:
    """As many of the batches as a shard holds."""
    import pyarrow

    written = 0
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema()) as stream:
        for together in batches:
            stream.write_batch(as_batch(together))
            num_tokens = sum(len(block.input_ids) for block in together)
            packing.num_blocks += len(together)
            packing.num_sequences += sum(len(block.lengths) for block in together)
            packing.num_tokens += num_tokens
            packing.num_learned += sum(block.num_units for block in together)
            written += num_tokens
            if written >= TOKENS_OF_A_SHARD:
                break
    return {}


def _batches(blocks: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while together := list(islice(blocks, max(TOKENS_TOGETHER // size, 1))):
        yield together


def _documents(dataset: datasets.Dataset) -> Iterator[Example]:
    """The rows in order, as many at a time as have `TOKENS_TOGETHER`."""
    import numpy

    lengths = dataset.with_format("numpy")["num_tokens"][:]
    groups = numpy.cumsum(lengths, dtype=numpy.int64) // TOKENS_TOGETHER
    limits = [0, *(numpy.flatnonzero(numpy.diff(groups)) + 1).tolist(), len(lengths)]
    table = dataset.with_format("arrow")
    for start, end in pairwise(limits):
        yield from _placed(table[start:end])


def _placed(table: Any) -> Iterator[Example]:
    """The examples of a table, those of a JSON array named by their row, too."""
    for example in read_examples(table):
        origin = place(example.origin, example.row) if example.row >= 0 else example.origin
        yield replace(example, origin=origin)
