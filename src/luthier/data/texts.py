"""raw texts -> documents of token ids, EOS behind each."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.cache import Shard, write_shard
from luthier.data.check import RowProblem
from luthier.data.formats.text import read_text
from luthier.data.reader import RawRow, RowOrProblem, parse
from luthier.data.report import Counts
from luthier.data.table import Task, read_each
from luthier.data.tokenize import TYPECODE, Ids, TextTokenizer
from luthier.errors import DataError
from luthier.example import Example, as_batch, schema
from luthier.records import Text

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerBase

EMPTY = "no text in it"
MOST_BYTES = 8_000_000
"""Texts that are tokenised together take no more than that, but for a single one."""


def read_texts(
    rows: Sequence[RowOrProblem], column: str
) -> tuple[list[tuple[int, Text]], list[RowProblem]]:
    """The texts with the numbers of their rows, and the rows that are none."""
    return read_each(rows, lambda values, origin: read_text(values, column, origin))


def find_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """BOS, if the tokenizer puts it before a text by itself."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    with_bos, without = (
        tokenizer("a", add_special_tokens=is_added)["input_ids"] for is_added in (True, False)
    )
    return int(bos) if with_bos[:1] == [bos] != without[:1] else None


class TextEncoder:
    """Encodes many texts with one call of the tokenizer, without added special tokens but EOS.

    Args:
        tokenizer: one that has EOS.
        splits_special: whether special tokens in a text are read as their letters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, splits_special: bool = False) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("EOS ends every text, and this tokenizer has none.")
        self.tokenizer, self.splits_special = tokenizer, splits_special
        self._end = array(TYPECODE, [tokenizer.eos_token_id])
        self._texts = TextTokenizer(tokenizer, splits_special=splits_special)

    def encode(self, texts: Sequence[Text]) -> list[Ids]:
        """The ids of each text, EOS behind them."""
        contents, marks = [one.content for one in texts], self._texts.marks
        if marks is not None:
            contents = list(map(marks.mark, contents))
        return [ids + self._end for ids in self._texts.encode(contents)]


@dataclass(frozen=True)
class TextWork:
    """How shards of documents are made.

    Attributes:
        encoder: encodes texts.
        column: holds the text of a row.
        batch_size: rows that are encoded together, where they are not long.
    """

    encoder: TextEncoder
    column: str
    batch_size: int

    def make(self, task: Task, folder: Path) -> Shard:
        """Writes one shard."""
        return write_shard(folder, task.number, lambda path: asdict(self._write(task, path)))

    def _write(self, task: Task, path: Path) -> Counts:
        import pyarrow

        counts = Counts()
        first = task.first_row
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema()) as out:
            for together in self._batches(task.rows()):
                out.write_batch(self.encode(parse(together), first, counts))
                first += len(together)
        return counts

    def _batches(self, rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
        together: list[RawRow] = []
        room = MOST_BYTES
        for row in rows:
            if together and (row.size > room or len(together) == self.batch_size):
                yield together
                together, room = [], MOST_BYTES
            together.append(row)
            room -= row.size
        if together:
            yield together

    def encode(
        self, rows: Sequence[RowOrProblem], first: int, counts: Counts
    ) -> pyarrow.RecordBatch:
        """The documents of some rows, the first of which has the number `first`."""
        texts, problems = read_texts(rows, self.column)
        counts.num_read += len(rows)
        for problem in problems:
            counts.skip(problem)
        full = [(at, text) for at, text in texts if text.content and not text.content.isspace()]
        if len(full) < len(texts):
            counts.leave_out(EMPTY, len(texts) - len(full))
        ids = self.encoder.encode([text for _, text in full])
        lengths = [*map(len, ids)]
        counts.num_kept += len(ids)
        counts.num_tokens += sum(lengths)
        counts.num_learned += sum(lengths)
        counts.longest = max([counts.longest, *lengths])
        documents = zip(full, ids, strict=True)
        return as_batch(
            [
                Example(tokens, None, len(tokens), origin=str(text.origin or ""), row=first + at)
                for (at, text), tokens in documents
            ]
        )
