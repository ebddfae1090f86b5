"""rows of the training set are named by file and line, wherever they came from"""

import datasets
import pyarrow

from luthier.batching.streamed import NUM_REMEMBERED, StreamedTable
from luthier.training.report import origins_of


class Stream:
    def __init__(self) -> None:
        self.line = 0

    def take(self, count):
        lines = range(self.line, self.line + count)
        self.line += count
        return pyarrow.table({"origin": [f"rows.jsonl:{line + 1}" for line in lines]})


def test_rows_are_named_by_their_origin_and_those_of_arrays_by_number_too():
    rows = datasets.Dataset.from_dict(
        {"origin": ["a.jsonl:3", "b.json:1", "b.json:1"], "row": [2, 0, 1]}
    )

    assert origins_of(rows, [2, 0]) == ["b.json:1 (row 2)", "a.jsonl:3"]
    assert origins_of(rows.select_columns(["origin"]), [1]) == ["b.json:1"]
    assert origins_of(rows.select_columns(["row"]), [1]) == ["row 2 of the encoded data"]


def test_rows_of_the_last_steps_of_a_stream_are_remembered():
    table = StreamedTable(Stream(), 1000)
    for first in range(8, 8 + 3 * 2 * NUM_REMEMBERED, 3):
        table[range(first, first + 3)]

    assert origins_of(table, [first, first + 2]) == [
        f"rows.jsonl:{first - 7}",
        f"rows.jsonl:{first - 5}",
    ]
    assert origins_of(table, [8]) == ["example 9 of the stream"]
