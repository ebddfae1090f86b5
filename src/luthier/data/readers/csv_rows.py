"""CSV: rows under a header, every value a text, empty cells included."""

from __future__ import annotations

import csv

from luthier.data.check import RowProblem
from luthier.data.reader import (
    READERS,
    DataFile,
    Parsed,
    Position,
    RawRows,
    Reader,
    Row,
    RowOrProblem,
    TextLines,
)
from luthier.records import Origin


@READERS.register(".csv", ".tsv")
class CsvReader(Reader):
    """Cells between commas, or between tabs in `.tsv`; a quoted one may hold line breaks."""

    def rows(self, file: DataFile, position: Position = None) -> RawRows:
        csv.field_size_limit(1 << 30)
        delimiter = "\t" if file.suffix == ".tsv" else ","
        header: list[str] | None = None
        byte, first = position or (0, 1)
        if position:
            with file.open() as stream:
                table = csv.reader(TextLines(stream, 0), delimiter=delimiter)
                while header is None:
                    try:
                        header = next(table)
                    except csv.Error:
                        continue
        with file.open() as stream:
            lines = TextLines(stream, byte)
            table = csv.reader(lines, delimiter=delimiter)
            while True:
                origin, start = Origin(file.name, first + table.line_num), lines.byte
                row: RowOrProblem
                try:
                    cells = next(table)
                except StopIteration:
                    return
                except csv.Error as error:
                    row = RowProblem(str(origin), "", "not CSV", "Mend the line.", f": {error}")
                else:
                    if header is None:
                        header = cells
                        continue
                    if not cells:
                        continue
                    row = Row(dict(zip(header, cells, strict=False)), origin)
                    if len(cells) != len(header):
                        row = RowProblem(
                            str(origin),
                            "",
                            "another number of cells than the header",
                            'Put texts with commas or line breaks into quotes ("...").',
                            f" ({len(cells)}, not {len(header)})",
                        )
                yield Parsed(row, lines.byte - start), [lines.byte, first + table.line_num]
