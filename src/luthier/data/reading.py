"""a data set's name -> its rows, and the records that they are, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from luthier.data.catalog import Catalog, check_readable
from luthier.data.check import RowProblem
from luthier.data.formats.detect import NUM_LOOKED_AT
from luthier.data.reader import Row, RowOrProblem
from luthier.data.road import Road, read_records
from luthier.data.sources import HubAccess, Source
from luthier.errors import DataError
from luthier.secrecy import masked

if TYPE_CHECKING:
    from luthier.arguments.record import Arguments

BATCH_SIZE = 1000
"""Rows that are read together."""


@dataclass(frozen=True)
class Batch:
    """Some rows as they stand, and what they say."""

    rows: Sequence[RowOrProblem]
    records: Sequence[tuple[int, Any]]  # those that are one, with the number of its row here
    problems: Sequence[RowProblem]  # why the others are none

    def values(self, number: int) -> Any:
        """What stands in a row; None where it could not be parsed."""
        row = self.rows[number]
        return row.values if isinstance(row, Row) else None


class DatasetReader:
    """One data set as a run of these arguments reads it.

    Args:
        arguments: how data sets are read; of the rows, `batches` gives the first `max_samples`.
        catalog: what names stand for.
        name: the data set.
        road: of the stage.
        is_evaluated: whether it is one to evaluate on.
        in_place: as for `Source`.

    Attributes:
        source: its files.
        description: with what was detected, once `detect` was called.
        detected: what was found out of files and rows, as a line; empty when it was described.
        reading: what readers are told, and what they remark.

    Raises:
        DataError: if the name is unknown, or there are no files.
    """

    def __init__(
        self,
        arguments: Arguments,
        catalog: Catalog,
        name: str,
        road: Road,
        is_evaluated: bool = False,
        *,
        in_place: bool = False,
    ) -> None:
        self.name, self.road, self.most = name, road, arguments.data.max_samples
        self.description = catalog.describe(name)
        self.is_prompt = is_evaluated and road.predicts
        check_readable(self.description, road.record, road.predicted if self.is_prompt else ())
        access = HubAccess.of(arguments.model, arguments.data.preprocessing_num_workers)
        self.source = Source(self.description, access, in_place=in_place)
        self.detected = self.source.told
        self.reading = road.reading(self.description, needs_answer=not self.is_prompt)

    def detect(self) -> str:
        """Finds out from the first rows what the description leaves open, and says it.

        Raises:
            DataError: if there are none, or a file cannot be read.
        """
        first = list(islice(self.source.rows(), NUM_LOOKED_AT))
        if not first:
            files = [file.name for file in self.source.files] or [self.description.location]
            name = masked(self.name)
            raise DataError(f"data set {name!r}: there are no rows in {', '.join(files)}.")
        values = [row.values for row in first if isinstance(row, Row)]
        self.description, detected = self.road.detect(
            self.description, values, needs_answer=not self.is_prompt
        )
        self.detected = "; ".join(filter(None, (self.source.told, detected)))
        self.reading = self.road.reading(self.description, needs_answer=not self.is_prompt)
        return detected

    def batches(self) -> Iterator[Batch]:
        """The first `max_samples` rows, `BATCH_SIZE` at a time; raises what `detect` does."""
        self.detect()
        rows = islice(self.source.rows(), self.most)
        while together := list(islice(rows, BATCH_SIZE)):
            yield Batch(together, *read_records(together, self.road, self.reading))
