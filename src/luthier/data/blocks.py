"""documents -> blocks of at most cutoff_len tokens, nothing lost between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.data.origins import join_origins
from luthier.errors import DataError
from luthier.example import Example, count_learned
from luthier.records import IGNORE_INDEX

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Tokens: TypeAlias = NDArray[numpy.int32]
else:
    Tokens = Any


@dataclass(frozen=True)
class BlockOptions:
    """How documents become blocks.

    Attributes:
        cutoff_len: the most tokens of a block.
        is_packed: whether documents share blocks; otherwise each begins one of its own.
        is_isolated: whether each document, or part of one, is a sequence of its own, with
            positions from 0 on. Otherwise a block is one stretch of the stream of all documents.
        overlap: how many tokens before the cut a later part (or block of the stream) repeats.
            They are context there and not learned again.
        bos: the token that every sequence begins with; None where the tokenizer wants none.
    """

    cutoff_len: int
    is_packed: bool = True
    is_isolated: bool = True
    overlap: int = 0
    bos: int | None = None

    def __post_init__(self) -> None:
        least = self.overlap + (self.bos is not None) + 1
        if self.cutoff_len < least:
            raise DataError(
                f"cutoff_len {self.cutoff_len:,} leaves no room for new tokens: document_overlap "
                f"and BOS take {least - 1:,} of each block. Raise cutoff_len."
            )


def cut_blocks(documents: Iterable[Example], options: BlockOptions) -> Iterator[Example]:
    """Blocks that hold every token of the documents, in their order, once as something new.

    Without BOS and overlap, blocks of the stream are `stream[n * cutoff_len :][:cutoff_len]`; only
    the last is short. Isolated blocks are as full, but for a last token that would stand alone:
    nothing comes before it, so nothing would be learned from it. (Of three that are left, one or
    the other would, so they begin the next block where only two fit.)

    Args:
        documents: tokens of texts, EOS at their end and no BOS before them, none empty; they are
            drawn one by one, and only the current one is kept.
        options: lengths, isolation and overlap.
    """
    if options.is_isolated or not options.is_packed:
        return _cut_isolated(documents, options)
    return _cut_stream(documents, options)


def _cut_isolated(documents: Iterable[Example], options: BlockOptions) -> Iterator[Example]:
    growing = _Growing(options)
    num_bos = int(options.bos is not None)
    for document in documents:
        tokens, start = document.input_ids, 0
        while start < len(tokens):
            rest = len(tokens) - start
            context = min(options.overlap, start)
            room = growing.room - num_bos - context
            fewest = min(rest, 1 if num_bos or context else 2)
            if rest == 3 and fewest == 2 and not options.overlap:  # in two, one would stand alone
                fewest = 3
            if room < fewest and growing.size:
                yield growing.close()
                continue
            taken = min(rest, max(room, 1))
            is_next_alone = rest - taken == 1 and not (num_bos or options.overlap)
            if is_next_alone and taken > fewest:
                taken -= 1
            growing.begin(document.origin)
            growing.add(tokens[start - context : start], is_new=False)
            growing.add(tokens[start : start + taken], is_new=True)
            start += taken
        if not options.is_packed:
            yield growing.close()
    if growing.size:
        yield growing.close()


def _cut_stream(documents: Iterable[Example], options: BlockOptions) -> Iterator[Example]:
    growing = _Growing(options)
    context: Tokens | None = None
    for document in documents:
        tokens, start = document.input_ids, 0
        while start < len(tokens):
            if not growing.size:
                growing.begin(document.origin)
                if context is not None:
                    growing.add(context, is_new=False)
            else:
                growing.origins.append(document.origin)
            taken = min(growing.room, len(tokens) - start)
            growing.add(tokens[start : start + taken], is_new=True)
            start += taken
            if not growing.room:
                block = growing.close()
                context = block.input_ids[len(block.input_ids) - options.overlap :]
                yield block
    if growing.size:
        yield growing.close()


class _Growing:
    """A block on its way."""

    def __init__(self, options: BlockOptions) -> None:
        import numpy

        self.options = options
        self.bos = numpy.array([] if options.bos is None else [options.bos], numpy.int32)
        self._clear()

    def _clear(self) -> None:
        self.pieces: list[tuple[Tokens, bool]] = []
        self.lengths: list[int] = []
        self.size = 0
        self.origins: list[str] = []

    @property
    def room(self) -> int:
        """How many more tokens the block takes."""
        return self.options.cutoff_len - self.size

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
        self._clear()
        return block
