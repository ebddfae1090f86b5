"""The rows of a step, read from a table without making a Python number of each token."""

# S sequences, R real tokens of all sequences, one sequence after the other

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypedDict

import datasets
import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.integer[Any]]


class Example(TypedDict):
    """A row of an encoded data set, as far as batching reads it."""

    input_ids: Sequence[int] | Integers
    labels: Sequence[int] | Integers


class Columns(Protocol):
    """A table of encoded examples, as `datasets.Dataset` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


class Rows(NamedTuple):
    """The examples of a step and what is known of each without looking at its tokens.

    Attributes:
        examples: tokens and labels as arrays, which may be read-only views of the table.
        lengths: tokens of each.
        units: what the loss of each is divided by.
    """

    examples: list[Example]
    lengths: list[int]
    units: list[int]


class RowReader:
    """Reads some rows of a table at a time.

    Args:
        table: with columns `input_ids`, `labels`, `num_tokens` and `units_column`.
        units_column: counts what the loss of an example is divided by.
    """

    def __init__(self, table: Columns, units_column: str) -> None:
        self.units_column = units_column
        self.is_arrow = isinstance(table, datasets.Dataset)
        self.table = table
        if isinstance(table, datasets.Dataset):
            columns = dict.fromkeys(["input_ids", "labels", "num_tokens", units_column])
            self.table = table.with_format("arrow", columns=list(columns))

    def __call__(self, indices: Sequence[int]) -> Rows:
        """The rows of these numbers, in this order."""
        found = self.table[list(indices)]
        tokens, counts = ("input_ids", "labels"), ("num_tokens", self.units_column)
        if self.is_arrow:
            ids, labels = (_unpack(found[name]) for name in tokens)
            lengths, units = (found[name].to_pylist() for name in counts)
        else:
            ids, labels = (list(map(np.asarray, found[name])) for name in tokens)
            lengths, units = (list(found[name]) for name in counts)
        examples = [Example(input_ids=i, labels=t) for i, t in zip(ids, labels, strict=True)]
        return Rows(examples, lengths, units)


def _unpack(column: Any) -> list[Integers]:
    """The lists of an Arrow column, each a view of the flat values."""
    lists = column.combine_chunks()
    values = lists.flatten().to_numpy()
    ends = np.cumsum(lists.value_lengths().to_numpy()).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def join(examples: Sequence[Example]) -> tuple[Integers, Integers, Integers]:
    """Tokens, labels (both (R,) int64) and lengths ((S,) int64) of at least one example."""
    ids_R = np.concatenate([each["input_ids"] for each in examples], dtype=np.int64)
    labels_R = np.concatenate([each["labels"] for each in examples], dtype=np.int64)
    lengths_S = np.array([len(each["input_ids"]) for each in examples], dtype=np.int64)
    assert lengths_S.all(), "an example has a token at least"
    assert labels_R.shape == ids_R.shape, "as many labels as tokens"
    return ids_R, labels_R, lengths_S
