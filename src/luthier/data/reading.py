"""a data set's name -> its rows, and the records that they are, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from luthier.data.catalog import Catalog, Reading, check_readable
from luthier.data.check import RowProblem
from luthier.data.formats.detect import NUM_LOOKED_AT
from luthier.data.reader import Row, RowOrProblem
from luthier.data.road import Road, read_records
from luthier.data.sources import HubAccess, Source
from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.arguments.record import Arguments

BATCH_SIZE = 1000
"""Rows that are read together."""


@dataclass(frozen=True)
class Batch:
    """Some rows as they stand, and what they say.

    Attributes:
        rows: in order.
        records: those that are one, each with the number of its row in the batch.
        problems: why the others are none.
    """

    rows: Sequence[RowOrProblem]
    records: Sequence[tuple[int, Any]]
    problems: Sequence[RowProblem]

    def values(self, number: int) -> Any:
        """What stands in a row; None where it could not be parsed."""
        row = self.rows[number]
        return row.values if isinstance(row, Row) else None


@dataclass
class DatasetReader:
    """Reads the rows of one data set as training does.

    Args:
        arguments: how data sets are read; of the rows, the first `max_samples` are.
        catalog: what names stand for.
        name: the data set.
        road: of the stage.
        is_evaluated: whether it is one to evaluate on.

    Attributes:
        source: its files.
        description: with what was detected, once the first batch is read.
        detected: what was detected of files and rows, as a line; empty when it was described.
        reading: what readers are told, and what they remark; None before the first batch.

    Raises:
        DataError: if the name is unknown, or there are no files.
    """

    arguments: Arguments
    catalog: Catalog
    name: str
    road: Road
    is_evaluated: bool = False
    detected: str = ""
    reading: Reading | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.description = self.catalog.describe(self.name)
        self.is_prompt = self.is_evaluated and self.road.predicts
        predicted = self.road.predicted if self.is_prompt else ()
        check_readable(self.description, self.road.record, predicted)
        data = self.arguments.data
        access = HubAccess.of(self.arguments.model, data.preprocessing_num_workers)
        self.source = Source(self.description, access)
        self.detected = self.source.told

    def batches(self) -> Iterator[Batch]:
        """All rows, `BATCH_SIZE` at a time.

        Raises:
            DataError: if there are none, or a file cannot be read.
        """
        rows = islice(self.source.rows(), self.arguments.data.max_samples)
        together = list(islice(rows, BATCH_SIZE))
        if not together:
            raise DataError(f"data set {self.name!r}: there are no rows.")
        values = [row.values for row in together[:NUM_LOOKED_AT] if isinstance(row, Row)]
        self.description, detected = self.road.detect(self.description, values)
        self.detected = "; ".join(filter(None, (self.detected, detected)))
        self.reading = self.road.reading(self.description, needs_answer=not self.is_prompt)
        while together:
            yield Batch(together, *read_records(together, self.road, self.reading))
            together = list(islice(rows, BATCH_SIZE))
