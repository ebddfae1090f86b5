"""examples -> fewer, fuller ones: documents cut into blocks, rows side by side, cached."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.data.cache import Store, get_or_build, write_shard
from luthier.data.report import Packing
from luthier.errors import DataError
from luthier.example import Example, as_batch, count_learned, read_examples, schema
from luthier.records import IGNORE_INDEX

if TYPE_CHECKING:
    import datasets
    import numpy
    from numpy.typing import NDArray

    Tokens: TypeAlias = NDArray[numpy.int32]
else:
    Tokens = Any

TOKENS_TOGETHER = 1 << 22
"""Tokens that are read, and written, at a time."""

TOKENS_OF_A_SHARD = 1 << 26

MOST_NAMED = 32
"""So many places of the rows of an example are listed; of more, the rest is counted."""


@dataclass(frozen=True)
class Packer:
    """A way to make blocks of a data set."""

    size: int  # the most tokens of a block

    def blocks(self, dataset: datasets.Dataset) -> Iterator[Example]:
        """They, in order."""
        raise NotImplementedError

    def line(self, packing: Packing) -> str:
        """What the console says of them."""
        raise NotImplementedError


@dataclass(frozen=True)
class DocumentPacker(Packer):
    """Documents in the order of the data set, cut where a block ends."""

    is_packed: bool = True  # whether documents share blocks; otherwise each begins one of its own
    is_isolated: bool = True
    """Whether each document, or part of one, is a sequence of its own, with positions from 0 on.
    Otherwise a block is one stretch of the stream of all documents."""
    overlap: int = 0
    """How many tokens before the cut a later part (or block of the stream) repeats. They are
    context there and not learned again."""
    bos: int | None = None  # what every sequence begins with; None where the tokenizer wants none

    def __post_init__(self) -> None:
        least = self.overlap + (self.bos is not None) + 1
        if self.size < least:
            raise DataError(
                f"cutoff_len {self.size:,} leaves no room for new tokens: document_overlap "
                f"and BOS take {least - 1:,} of each block. Raise cutoff_len."
            )

    def blocks(self, dataset: datasets.Dataset) -> Iterator[Example]:
        import numpy

        lengths = dataset.with_format("numpy")["num_tokens"][:]
        groups = numpy.cumsum(lengths, dtype=numpy.int64) // TOKENS_TOGETHER
        limits = [0, *(numpy.flatnonzero(numpy.diff(groups)) + 1).tolist(), len(lengths)]
        table = dataset.with_format("arrow")
        documents = (
            one for start, end in pairwise(limits) for one in read_examples(table[start:end])
        )
        return self.cut(documents)

    def cut(self, documents: Iterable[Example]) -> Iterator[Example]:
        """Blocks that hold every token of the documents, in their order, once as something new.

        Without BOS and overlap, blocks of the stream are `stream[n * size :][:size]`; only the last
        is short. Isolated blocks are as full, but for a last token that would stand alone: nothing
        comes before it, so nothing would be learned from it. (Of three that are left, one or the
        other would, so they begin the next block where only two fit.) Documents have EOS at their
        end and no BOS; they are drawn one by one, and only the current one is kept.
        """
        is_isolated = self.is_isolated or not self.is_packed
        return self._cut_isolated(documents) if is_isolated else self._cut_stream(documents)

    def line(self, packing: Packing) -> str:
        counted = (
            f"{packing.num_rows:,} documents -> {packing.num_blocks:,} "
            f"{'blocks' if self.is_packed else 'examples'} of up to {self.size:,} tokens"
        )
        num_cut = packing.num_sequences - packing.num_rows
        if not self.is_packed:
            cut = f", long ones cut into {num_cut:,} further parts, nothing lost" if num_cut else ""
            return f"packing off: {counted}{cut}"
        filled = f"{packing.fill:.1%} filled".replace("%", " %")
        if not self.is_isolated:
            return f"packing: {counted}, {filled}; attention reaches across documents"
        return (
            f"packing: {counted}, {filled}; each of the {packing.num_sequences:,} documents and "
            "parts sees itself only"
        )

    def _cut_isolated(self, documents: Iterable[Example]) -> Iterator[Example]:
        growing = _Growing(self)
        num_bos = int(self.bos is not None)
        for document in documents:
            tokens, start = document.input_ids, 0
            while start < len(tokens):
                rest = len(tokens) - start
                context = min(self.overlap, start)
                room = growing.room - num_bos - context
                fewest = min(rest, 1 if num_bos or context else 2)
                if rest == 3 and fewest == 2 and not self.overlap:  # in two, one would stand alone
                    fewest = 3
                if room < fewest and growing.size:
                    yield growing.close()
                    continue
                taken = min(rest, max(room, 1))
                is_next_alone = rest - taken == 1 and not (num_bos or self.overlap)
                if is_next_alone and taken > fewest:
                    taken -= 1
                growing.begin(document.place)
                growing.add(tokens[start - context : start], is_new=False)
                growing.add(tokens[start : start + taken], is_new=True)
                start += taken
            if not self.is_packed:
                yield growing.close()
        if growing.size:
            yield growing.close()

    def _cut_stream(self, documents: Iterable[Example]) -> Iterator[Example]:
        growing = _Growing(self)
        context: Tokens | None = None
        for document in documents:
            tokens, start = document.input_ids, 0
            while start < len(tokens):
                if not growing.size:
                    growing.begin(document.place)
                    if context is not None:
                        growing.add(context, is_new=False)
                else:
                    growing.origins.append(document.place)
                taken = min(growing.room, len(tokens) - start)
                growing.add(tokens[start : start + taken], is_new=True)
                start += taken
                if not growing.room:
                    block = growing.close()
                    context = block.input_ids[len(block.input_ids) - self.overlap :]
                    yield block
        if growing.size:
            yield growing.close()


@dataclass(frozen=True)
class RowPacker(Packer):
    """Whole conversations side by side, none longer than a block, by best fit."""

    def blocks(self, dataset: datasets.Dataset) -> Iterator[Example]:
        import numpy

        lengths = dataset.with_format("numpy")["num_tokens"][:].tolist()
        groups = best_fit(lengths, self.size)
        table = dataset.with_format("arrow")
        waiting = iter(groups)
        while together := list(islice(waiting, max(TOKENS_TOGETHER // self.size, 1))):
            found = iter(read_examples(table[[number for group in together for number in group]]))
            for group in together:
                members = list(islice(found, len(group)))
                yield Example(
                    numpy.concatenate([each.input_ids for each in members]),
                    numpy.concatenate([each.labels for each in members]),
                    sum(each.num_units for each in members),
                    tuple(len(each.input_ids) for each in members),
                    is_packed=True,
                    origin=join_origins(each.place for each in members),
                )

    def line(self, packing: Packing) -> str:
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
    """The blocks of a part of the run's data, made or of the cache; their counts; their folder.

    `key` is the hash of the data set and of the packer's ingredients; `overwrite` makes them again.
    """
    import pyarrow

    def build(store: Store) -> dict[str, Any]:
        packing = Packing(name, num_rows=len(dataset), size=packer.size)
        blocks = packer.blocks(dataset)
        batches = iter(lambda: list(islice(blocks, max(TOKENS_TOGETHER // packer.size, 1))), [])

        def write(path: Path) -> dict[str, Any]:
            """As many batches as a shard holds."""
            before = packing.num_tokens
            with (
                pyarrow.OSFile(str(path), "wb") as file,
                pyarrow.ipc.new_stream(file, schema()) as stream,
            ):
                for together in chain([first or []], batches):
                    stream.write_batch(as_batch(together))
                    packing.num_blocks += len(together)
                    packing.num_sequences += sum(len(block.lengths) for block in together)
                    packing.num_tokens += sum(len(block.input_ids) for block in together)
                    packing.num_learned += sum(block.num_units for block in together)
                    if packing.num_tokens - before >= TOKENS_OF_A_SHARD:
                        break
            return {}

        for number in count():
            first = next(batches, None)
            if first is None and number:
                break
            store.add(write_shard(store.folder, number, write))
        return asdict(packing)

    published = get_or_build(root, key, build, overwrite=overwrite)
    packing = Packing(**(published.report | {"name": name, "was_cached": published.was_there}))
    return published.open(key), packing, published.folder


class _Growing:
    """A block on its way."""

    def __init__(self, packer: DocumentPacker) -> None:
        import numpy

        self.packer = packer
        self.bos = numpy.array([] if packer.bos is None else [packer.bos], numpy.int32)
        self.pieces: list[tuple[Tokens, bool]] = []
        self.lengths: list[int] = []
        self.origins: list[str] = []
        self.size = 0

    @property
    def room(self) -> int:
        """How many more tokens the block takes."""
        return self.packer.size - self.size

    def begin(self, origin: str) -> None:
        """Begins a sequence, with BOS where the tokenizer wants it."""
        self.origins.append(origin)
        self.lengths.append(0)
        self.add(self.bos, is_new=False)

    def add(self, tokens: Tokens, *, is_new: bool) -> None:
        """Tokens of the sequence that was begun last."""
        self.pieces.append((tokens, is_new))
        self.lengths[-1] += len(tokens)
        self.size += len(tokens)

    def close(self) -> Example:
        """The block; the next one is empty."""
        import numpy

        input_ids = numpy.concatenate([tokens for tokens, _ in self.pieces], dtype=numpy.int32)
        labels = input_ids.copy()
        at = 0
        for tokens, is_new in self.pieces:
            if not is_new:
                labels[at : at + len(tokens)] = IGNORE_INDEX
            at += len(tokens)
        block = Example(
            input_ids,
            labels,
            count_learned(labels, self.lengths),
            tuple(self.lengths),
            is_packed=True,
            origin=join_origins(self.origins),
        )
        self.pieces, self.lengths, self.origins, self.size = [], [], [], 0
        return block


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Groups of at most `size` tokens, by best fit decreasing (Johnson 1974): 11/9 of the fewest.

    The longest come first, each into the fullest group that has room for it, of equals into the
    one that was opened last. They are numbers of the lengths, none above `size`: ascending in a
    group, and groups by the first number in them.
    """
    groups: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        length = lengths[number]
        assert length <= size, (length, size)
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            group = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
            groups[group].append(number)
        else:
            room, group = size, len(groups)
            groups.append([number])
        room -= length
        if room:
            if room not in by_room:
                by_room[room] = []
                insort(rooms, room)
            by_room[room].append(group)
    return sorted(map(sorted, groups))


def join_origins(origins: Iterable[str]) -> str:
    """Several places `file:line` as one text: `rows.jsonl:3, 17, 40; other.jsonl:2`."""
    distinct = list(dict.fromkeys(origins))
    lines: dict[str, list[str]] = {}
    for origin in distinct[:MOST_NAMED]:
        file, _, line = origin.rpartition(":")
        lines.setdefault(file, []).append(line)
    named = [f"{file}:{', '.join(of)}" if file else ", ".join(of) for file, of in lines.items()]
    more = len(distinct) - MOST_NAMED
    return "; ".join(named) + (f" and {more:,} more" if more > 0 else "")
