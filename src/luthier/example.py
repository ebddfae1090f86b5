"""What the sampler counts: token sequences that stay together, and the table they are kept in."""

# R tokens of an example, one sequence after the other, S its sequences

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from luthier.records import IGNORE_INDEX

if TYPE_CHECKING:
    import datasets
    import pyarrow

OF_TOKENS, OF_SEQUENCES = "token_", "sequence_"
"""What the columns of named numbers begin with; the name follows."""

WEIGHT = "weight"
"""The number of a token by which its loss is multiplied; examples that have none count once."""

REFERENCE = "reference_logp"
"""The number of a learned token that is its log-probability by the reference."""

WEIGHTS = f"{OF_TOKENS}{WEIGHT}"
"""The column of these numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One or more token sequences, what their loss is divided by, and the numbers they come with.

    A conversation or a text is one sequence, a pair of answers two, a group of answers as many as
    there are. They are dealt to ranks and micro-batches together, so that a loss may compare them.
    The documents of a packed example are sequences, too, but know nothing of each other; see
    `apart`.
    """

    input_ids: Any  # (R,) integers; of a prompt to answer, those of the prompt
    labels: Any  # (R,), IGNORE_INDEX where nothing is learned; of a prompt, those of the answer
    num_units: int = 0  # what its loss is divided by: learned tokens, or a pair
    lengths: tuple[int, ...] = ()  # (S,), the tokens of each sequence; empty where there is one
    is_packed: bool = False  # whether its sequences know nothing of each other
    token_numbers: Mapping[str, Any] = field(default_factory=dict)
    """By name (R,) floats, such as `weight`."""
    sequence_numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By name (S,) floats, such as the log-probability of a reference."""
    origin: str = ""  # where its row stands, `file:line`, or several where rows were packed
    row: int = -1  # the number of its row in the data set; -1 where that is not known
    num_cut: int = 0  # tokens that had no room
    num_whole: int = 0
    """The tokens of the longest of several sequences before any were cut."""

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """The tokens of each sequence, of a single one, too."""
        return self.lengths or (len(self.input_ids),)

    @property
    def place(self) -> str:
        """Its origin; in a JSON array, whose rows may all be on one line, with its row's number."""
        is_array = self.row >= 0 and self.origin.rpartition(":")[0].endswith(".json")
        return f"{self.origin} (row {self.row + 1:,})" if is_array else self.origin

    def sequences(self) -> list[Any]:
        """The tokens of each sequence."""
        if not self.lengths:
            return [self.input_ids]
        return [self.input_ids[start:end] for start, end in _spans(self.lengths)]

    def apart(self) -> list[Example]:
        """The documents of a packed example, each for itself; any other example as it is."""
        return self.each_sequence() if self.is_packed else [self]

    def each_sequence(self) -> list[Example]:
        """Its sequences as examples of their own, each divided by the tokens that it learns."""
        parts = []
        for start, end in _spans(self.sequence_lengths):
            labels = self.labels[start:end]
            numbers = {name: each[start:end] for name, each in self.token_numbers.items()}
            parts.append(
                replace(
                    self,
                    input_ids=self.input_ids[start:end],
                    labels=labels,
                    num_units=count_learned(labels),
                    lengths=(),
                    is_packed=False,
                    token_numbers=numbers,
                )
            )
        return parts


class ExampleSet:
    """Examples in one order, asked for by their numbers.

    These are kept in a table, any of them at any time. Those that are not kept (`data.stream`)
    answer the same: they have no end, and each is asked for once.

    Attributes:
        num_examples: None where there is no end.
        table: the kept ones, by `schema`.
        beside: a table of further numbers of the same rows.
    """

    num_examples: int | None
    beside: datasets.Dataset | None = None

    def __init__(self, table: datasets.Dataset) -> None:
        self.table = table
        self.num_examples = len(table)
        used = ("input_ids", "labels", "lengths", "packed", "num_units")
        of_loss = [
            name
            for name in table.column_names
            if name in used or name.startswith((OF_TOKENS, OF_SEQUENCES))
        ]
        self._of_loss = table.with_format("arrow", columns=of_loss)

    def __len__(self) -> int:
        assert self.num_examples is not None, "it has no end"
        return self.num_examples

    def __getitem__(self, rows: Sequence[int]) -> list[Example]:
        """What a loss is computed from, each example named by the number it was asked for by."""
        table = self._of_loss[rows]
        if self.beside is not None:
            others = self.beside.with_format("arrow")[rows]
            for name in others.column_names:
                table = table.append_column(name, others[name])
        return read_examples(table, rows)

    def take(self, count: int) -> list[Example]:
        """The first examples, or as many as there are, whole; nothing is used up."""
        return read_examples(self.table.with_format("arrow")[:count])

    def lengths(self) -> list[int]:
        """The tokens of each kept example."""
        return list(self.table["num_tokens"])

    def longest(self) -> int:
        """The most tokens of a sequence."""
        names = [n for n in ("num_tokens", "lengths", "packed") if n in self.table.column_names]
        table = self.table.select_columns(names).with_format("arrow")[:]
        several = [table[name].combine_chunks() for name in names[1:]]
        is_alone = ~sum((each.is_valid().to_numpy(False) for each in several), False)
        whole = table["num_tokens"].to_numpy()[is_alone]
        parts = [each.flatten().to_numpy() for each in several]
        return int(max(each.max() for each in (whole, *parts) if len(each)))

    def origins(self, rows: Sequence[int]) -> list[str]:
        """Where rows come from: `file:line`, or several of them where rows were packed."""
        found = read_examples(self.table.with_format("arrow")[list(rows)])
        unknown = (f"row {row + 1:,} of the encoded data" for row in rows)
        return [each.place or other for each, other in zip(found, unknown, strict=True)]

    def fingerprint(self) -> dict[str, Any]:
        """A hash of the examples and their order, whatever file they came from.

        Of all lengths and counts of learned tokens, and the tokens of some from all over the data.
        """
        digest, num_read = hashlib.sha256(), 64
        for name in ("num_tokens", "num_units"):
            column = self.table.select_columns([name]).with_format("arrow")[:].column(name)
            digest.update(column.combine_chunks().to_numpy(zero_copy_only=False).astype("<i8"))
        places = {at * (len(self) - 1) // (num_read - 1) for at in range(num_read)}
        for row in self.table.select(sorted(places)):
            digest.update(json.dumps([row["input_ids"], row["labels"]]).encode())
        return {"fingerprint": digest.hexdigest(), "rows": len(self)}

    def start(self, state: dict[str, Any] | None = None) -> None:
        """Begins, or goes on behind where a state was taken."""

    def state(self, num_examples: int) -> dict[str, Any] | None:
        """What it takes, as JSON, to go on behind so many examples; None for kept ones."""

    def close(self) -> None:
        """Ends what `start` began."""

    def lines(self) -> Iterator[str]:
        """What became of the rows that were used so far, where that was not known at first."""
        return iter(())


def count_learned(labels: Any, lengths: Sequence[int] = ()) -> int:
    """How many positions are predicted; see `where_learned`."""
    return int(where_learned(labels, lengths).sum())


def where_learned(labels: Any, lengths: Sequence[int] = ()) -> Any:
    """(R,) booleans: the positions with a label, but the first of each sequence."""
    import numpy

    is_learned = numpy.asarray(labels) != IGNORE_INDEX
    is_learned[[start for start, _ in _spans(lengths)] or slice(1)] = False
    return is_learned


def schema(
    token_numbers: Iterable[str] = (), sequence_numbers: Iterable[str] = ()
) -> pyarrow.Schema:
    """The columns of a table of examples, with those of the named numbers.

    `lengths` and `packed` hold the tokens of each sequence, null where there is one; `row` is null
    where it is not known. Numbers are null where an example has none.
    """
    import pyarrow

    integers, floats = pyarrow.list_(pyarrow.int32()), pyarrow.list_(pyarrow.float32())
    return pyarrow.schema(
        {
            "input_ids": integers,
            "labels": integers,
            "lengths": integers,
            "packed": integers,
            "num_tokens": pyarrow.int32(),
            "num_units": pyarrow.int32(),
            "origin": pyarrow.string(),
            "row": pyarrow.int64(),
            **{f"{OF_TOKENS}{name}": floats for name in sorted(token_numbers)},
            **{f"{OF_SEQUENCES}{name}": floats for name in sorted(sequence_numbers)},
        }
    )


def as_batch(
    examples: Sequence[Example],
    origins: Sequence[str] | None = None,
    rows: Sequence[int] | None = None,
) -> pyarrow.RecordBatch:
    """Examples as a record batch of `schema`, with the numbers that any of them has.

    Origins and the numbers of rows are by default as the examples say.
    """
    import pyarrow

    origins = [each.origin for each in examples] if origins is None else origins
    rows = [each.row for each in examples] if rows is None else rows

    of_tokens = sorted({name for each in examples for name in each.token_numbers})
    of_sequences = sorted({name for each in examples for name in each.sequence_numbers})
    int32, float32 = pyarrow.int32(), pyarrow.float32()
    columns = [
        lists_of([each.input_ids for each in examples], int32),
        lists_of([each.labels for each in examples], int32),
        lists_of([None if each.is_packed else each.lengths or None for each in examples], int32),
        lists_of([each.lengths if each.is_packed else None for each in examples], int32),
        pyarrow.array([len(each.input_ids) for each in examples], int32),
        pyarrow.array([each.num_units for each in examples], int32),
        pyarrow.array(origins, pyarrow.string()),
        pyarrow.array([row if row >= 0 else None for row in rows], pyarrow.int64()),
        *(lists_of([each.token_numbers.get(n) for each in examples], float32) for n in of_tokens),
        *(
            lists_of([each.sequence_numbers.get(n) for each in examples], float32)
            for n in of_sequences
        ),
    ]
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema(of_tokens, of_sequences))


def read_examples(table: pyarrow.Table, rows: Sequence[int] | None = None) -> list[Example]:
    """The examples of an Arrow table, their tokens read-only views of it.

    Only `input_ids` has to be there, and `num_units` where a loss is taken. `rows` are their
    numbers in the data set, where the column `row` says others.
    """
    names = table.column_names
    ids = arrays_of(table["input_ids"])
    lists = {
        name: arrays_of(table[name]) if name in names else [None] * len(ids)
        for name in ("labels", "lengths", "packed")
    }
    plain: dict[str, Sequence[Any]] = {
        name: table[name].to_pylist() if name in names else [missing] * len(ids)
        for name, missing in (("num_units", 0), ("origin", ""), ("row", -1))
    }
    numbers = {
        kind: {n.removeprefix(kind): arrays_of(table[n]) for n in names if n.startswith(kind)}
        for kind in (OF_TOKENS, OF_SEQUENCES)
    }
    found = []
    for at, tokens in enumerate(ids):
        packed, lengths = lists["packed"][at], lists["lengths"][at]
        several = packed if packed is not None else lengths
        row = plain["row"][at] if rows is None else rows[at]
        found.append(
            Example(
                tokens,
                lists["labels"][at],
                plain["num_units"][at],
                () if several is None else tuple(several.tolist()),
                packed is not None,
                _numbers_of(numbers[OF_TOKENS], at),
                _numbers_of(numbers[OF_SEQUENCES], at),
                plain["origin"][at] or "",
                -1 if row is None else int(row),
            )
        )
    return found


def lists_of(values: Sequence[Any], kind: Any) -> Any:
    """An Arrow array of lists of that kind, each array or tuple copied once; None is null."""
    import numpy
    import pyarrow

    ends = numpy.cumsum([0, *(0 if each is None else len(each) for each in values)])
    dtype = kind.to_pandas_dtype()
    arrays: list[Any] = [numpy.asarray(each, dtype) for each in values if each is not None]
    flat = pyarrow.Array.from_buffers(
        kind, int(ends[-1]), [None, pyarrow.py_buffer(b"".join(arrays))]
    )
    mask = None
    if any(each is None for each in values):
        mask = pyarrow.array([each is None for each in values])
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends.astype("int32")), flat, mask=mask)


def arrays_of(column: Any) -> list[Any]:
    """The lists of an Arrow column, each a view of the flat values; None for null."""
    import numpy

    found: list[Any] = []
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy()
        ends = numpy.cumsum(chunk.value_lengths().fill_null(0).to_numpy()).tolist()
        lists = [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if chunk.null_count:
            is_there = chunk.is_valid().to_pylist()
            lists = [each if here else None for each, here in zip(lists, is_there, strict=True)]
        found += lists
    return found


def _numbers_of(columns: Mapping[str, Sequence[Any]], at: int) -> dict[str, Any]:
    return {name: each[at] for name, each in columns.items() if each[at] is not None}


def _spans(lengths: Sequence[int]) -> list[tuple[int, int]]:
    spans, start = [], 0
    for length in lengths:
        spans.append((start, start + length))
        start += length
    return spans
