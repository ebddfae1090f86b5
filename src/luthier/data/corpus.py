"""a data set -> its texts, for whoever wants no tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from luthier.data.formats.detect import NUM_LOOKED_AT
from luthier.data.formats.text import find_text_column
from luthier.data.reader import Row
from luthier.data.report import Counts
from luthier.data.sources import Source
from luthier.data.texts import EMPTY, read_texts

ROWS_TOGETHER = 1000


@dataclass
class Corpus:
    """The texts of a data set, read once.

    Attributes:
        source: where they stand.
        counts: what became of the rows that were read so far.
    """

    source: Source
    counts: Counts = field(default_factory=Counts)

    def texts(self) -> Iterator[str]:
        """Every text that is not blank.

        Raises:
            DataError: if no column holds text, or a file cannot be read.
        """
        rows = self.source.rows()
        first = list(islice(rows, NUM_LOOKED_AT))
        values = [row.values for row in first if isinstance(row, Row)]
        column = find_text_column(self.source.description, values)
        waiting = chain(first, rows)
        while together := list(islice(waiting, ROWS_TOGETHER)):
            texts, problems = read_texts(together, column)
            full = [text.content for _, text in texts if not text.content.isspace()]
            full = [text for text in full if text]
            self.counts.num_read += len(together)
            self.counts.num_kept += len(full)
            for problem in problems:
                self.counts.skip(problem)
            if len(full) < len(texts):
                self.counts.leave_out(EMPTY, len(texts) - len(full))
            yield from full
