"""The rows of a step, read from a table without making a Python number of each token."""

# S sequences, R real tokens of all sequences, one sequence after the other, N some of these tokens

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypedDict

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.batching.streamed import StreamedTable

Integers: TypeAlias = NDArray[np.integer[Any]]
Floats: TypeAlias = NDArray[np.float32]

SEQUENCE_LENGTHS = "sequence_lengths"
"""The column of packed rows: the tokens of each sequence in a row."""


WEIGHTS = "weights"
"""The column of rows of which some count more or less: a number for each token, or null."""


class _Tokens(TypedDict):
    input_ids: Sequence[int] | Integers
    labels: Sequence[int] | Integers


class Example(_Tokens, total=False):
    """A sequence of an encoded data set, as far as batching reads it.

    Attributes:
        weights: how much the loss of each token counts; absent where each counts once.
    """

    weights: Sequence[float] | Floats


class Columns(Protocol):
    """A table of encoded examples, as `datasets.Dataset` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


class Rows(NamedTuple):
    """The sequences of a step, and what is known of them without looking at their tokens.

    Attributes:
        sequences: tokens and labels as arrays, which may be read-only views of the table. A row
            is one, or as many as it has `sequence_lengths`.
        lengths: tokens of each sequence.
        units: what the loss of each row is divided by.
        owners: of each sequence, the place of its row among those that were asked for.
    """

    sequences: list[Example]
    lengths: list[int]
    units: list[int]
    owners: list[int]


class RowReader:
    """Reads some rows of a table at a time.

    Args:
        table: with columns `input_ids`, `labels` and `units_column`. Where rows hold several
            sequences one after the other, `sequence_lengths` lists the tokens of each. Other rows
            may have `weights`.
        units_column: counts what the loss of an example is divided by.
    """

    def __init__(self, table: Columns, units_column: str) -> None:
        self.units_column = units_column
        self.is_arrow = isinstance(table, datasets.Dataset | StreamedTable)
        self.table = table
        if isinstance(table, datasets.Dataset):
            wanted = ["input_ids", "labels", SEQUENCE_LENGTHS, WEIGHTS, units_column]
            columns = [name for name in wanted if name in table.column_names]
            self.table = table.with_format("arrow", columns=columns)

    def __call__(self, indices: Sequence[int]) -> Rows:
        """The rows of these numbers, in this order."""
        found = self.table[list(indices)]
        columns = found.column_names if self.is_arrow else found
        unpack = _unpack if self.is_arrow else _as_arrays
        ids, labels = unpack(found["input_ids"]), unpack(found["labels"])
        units = found[self.units_column]
        owners = list(range(len(ids)))
        if SEQUENCE_LENGTHS in columns:
            assert WEIGHTS not in columns, "packed rows have no weights"
            parts = unpack(found[SEQUENCE_LENGTHS])
            owners = np.repeat(owners, [len(each) for each in parts]).tolist()
            ids, labels = _part(ids, parts), _part(labels, parts)
        sequences = [Example(input_ids=i, labels=t) for i, t in zip(ids, labels, strict=True)]
        if WEIGHTS in columns:
            for example, weights in zip(sequences, unpack(found[WEIGHTS]), strict=True):
                if len(weights):
                    example["weights"] = weights
        return Rows(
            sequences,
            [len(each) for each in ids],
            units.to_pylist() if self.is_arrow else list(units),
            owners,
        )


def _unpack(column: Any) -> list[NDArray[Any]]:
    """The lists of an Arrow column, each a view of the flat values; null is an empty one."""
    lists = column.combine_chunks()
    values = lists.flatten().to_numpy()
    ends = np.cumsum(lists.value_lengths().fill_null(0).to_numpy()).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _as_arrays(lists: Sequence[Any]) -> list[NDArray[Any]]:
    """The lists of a plain column; None is an empty one."""
    return [np.asarray([] if each is None else each) for each in lists]


def _part(lists: list[Integers], lengths: list[Integers]) -> list[Integers]:
    """The lists cut into parts of these lengths."""
    parts = []
    for values, counts in zip(lists, lengths, strict=True):
        ends = np.cumsum(counts).tolist()
        assert ends[-1] == len(values), "the sequences are the row"
        parts += [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return parts


def join(examples: Sequence[Example]) -> tuple[Integers, Integers, Integers]:
    """Tokens, labels (both (R,) int64) and lengths ((S,) int64) of at least one example."""
    ids_R = np.concatenate([each["input_ids"] for each in examples], dtype=np.int64)
    labels_R = np.concatenate([each["labels"] for each in examples], dtype=np.int64)
    lengths_S = np.array([len(each["input_ids"]) for each in examples], dtype=np.int64)
    assert lengths_S.all(), "an example has a token at least"
    assert labels_R.shape == ids_R.shape, "as many labels as tokens"
    return ids_R, labels_R, lengths_S


def weights_of(examples: Sequence[Example], places_N: Integers) -> Tensor | None:
    """How much the loss of some tokens counts; None where each of them counts once.

    Args:
        examples: those of `join`.
        places_N: where the tokens stand in what `join` gives.

    Returns:
        (N,) float32.
    """
    if not any("weights" in each for each in examples):
        return None
    weights_R = np.concatenate(
        [
            each["weights"] if "weights" in each else np.ones(len(each["input_ids"]))
            for each in examples
        ],
        dtype=np.float32,
    )
    weights_N = weights_R[places_N]
    return None if (weights_N == 1).all() else torch.from_numpy(weights_N)
