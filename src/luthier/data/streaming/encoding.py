"""some rows of several data sets -> their examples, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier.data.check import refuse_weights
from luthier.data.reader import Row, RowOrProblem, parse
from luthier.data.report import Counts
from luthier.example import WEIGHTS, as_batch

if TYPE_CHECKING:
    import pyarrow

    from luthier.data.pack import Packer
    from luthier.data.road import Encoding
    from luthier.data.streaming.held_out import HeldOut
    from luthier.data.streaming.order import Drawn

KEPT_FOR_EVALUATION = "kept for evaluation"


class EncodedRows(NamedTuple):
    """What became of some rows.

    Attributes:
        table: a row for each example.
        counts: by the number of the data set; rows that were drawn before are not counted again.
    """

    table: Any
    counts: dict[int, Counts]


@dataclass(frozen=True)
class MixedEncoding:
    """How the rows of a stream are encoded; it goes to other processes.

    Attributes:
        names: of the data sets, for messages.
        encodings: one for each data set.
        packer: puts examples together; None where each is one.
        held_out: rows that are not trained on.
    """

    names: tuple[str, ...]
    encodings: tuple[Encoding, ...]
    packer: Packer | None = None
    held_out: HeldOut | None = None

    def encode(self, rows: Sequence[Drawn]) -> EncodedRows:
        """The examples of the rows, in their order."""
        import numpy
        import pyarrow

        groups: dict[tuple[int, bool], list[int]] = {}
        for at, drawn in enumerate(rows):
            groups.setdefault((drawn.number, drawn.is_again), []).append(at)
        counts: dict[int, Counts] = {}
        tables, places = [], []
        for (number, is_again), members in groups.items():
            counted = Counts()
            kept, parsed = self._read(number, members, rows, counted)
            batch = self.encodings[number].encode(parsed, 0, counted)
            if WEIGHTS in batch.schema.names:
                refuse_weights(self.names[number], "streaming")
            tables.append(pyarrow.Table.from_batches([batch]))
            places.append(numpy.array(kept, numpy.int64)[batch.column("row").to_numpy()])
            if not is_again:
                counts[number] = counted
        table = pyarrow.concat_tables(tables, promote_options="default")
        if len(tables) > 1:
            table = table.take(numpy.argsort(numpy.concatenate(places), kind="stable"))
        return EncodedRows(self._pack(table), counts)

    def _read(
        self, number: int, members: Sequence[int], rows: Sequence[Drawn], counts: Counts
    ) -> tuple[list[int], list[RowOrProblem]]:
        """The rows of a data set that are trained on, and their places."""
        kept: list[int] = []
        parsed: list[RowOrProblem] = []
        read = parse([rows[at].raw for at in members])
        for at, row in zip(members, read, strict=True):
            if self.held_out is not None and isinstance(row, Row):
                if self.held_out.holds(number, row.values):
                    continue
            kept.append(at)
            parsed.append(row)
        if len(kept) < len(members):
            counts.num_read += len(members) - len(kept)
            counts.leave_out(KEPT_FOR_EVALUATION, len(members) - len(kept))
        return kept, parsed

    def _pack(self, table: pyarrow.Table) -> pyarrow.Table:
        if self.packer is None or not len(table):
            return table
        import datasets
        import pyarrow

        rows = table.drop_columns(["row"]).combine_chunks()  # its numbers are those of a chunk
        blocks = list(self.packer.blocks(datasets.Dataset(rows)))
        return pyarrow.Table.from_batches([as_batch(blocks)])
