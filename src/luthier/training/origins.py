"""Rows of the training set -> the files and lines they came from, looked up only when asked."""

from __future__ import annotations

from collections.abc import Sequence

import datasets

from luthier.batching.streamed import StreamedTable
from luthier.data.pack import place

ORIGIN, ROW = "origin", "row"
"""Columns of encoded sets that say where an example stands."""


def origins_of(dataset: datasets.Dataset | StreamedTable | None, rows: Sequence[int]) -> list[str]:
    """Where rows come from: `file:line`, or several of them where rows were packed.

    Args:
        dataset: that was trained on.
        rows: numbers of rows, as `Step.rows` holds them; of a stream, of its last steps.
    """
    if isinstance(dataset, StreamedTable):
        return [dataset.origin(row) or f"example {row + 1:,} of the stream" for row in rows]
    if dataset is None or ORIGIN not in dataset.column_names:
        return [f"row {row + 1:,} of the encoded data" for row in rows]
    found = dataset.with_format("arrow")[list(rows)]
    origins: list[str] = found[ORIGIN].to_pylist()
    if ROW in found.column_names:
        return [*map(place, origins, found[ROW].to_pylist())]
    return origins
