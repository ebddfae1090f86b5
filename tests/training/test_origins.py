"""rows of the training set are named by file and line, wherever they came from"""

import datasets

from luthier.data.stream import NUM_REMEMBERED
from luthier.example import ExampleSet
from tests.data.streams import open_stream, write_rows


def test_rows_are_named_by_their_origin_and_those_of_arrays_by_number_too():
    table = datasets.Dataset.from_dict(
        {
            "input_ids": [[1], [2], [3]],
            "origin": ["a.jsonl:3", "b.json:1", "b.json:1"],
            "row": [2, 0, 1],
        }
    )

    def origins(rows, *left_out):
        return ExampleSet(table.remove_columns([*left_out])).origins(rows)

    assert origins([2, 0]) == ["b.json:1 (row 2)", "a.jsonl:3"]
    assert origins([1], "row") == ["b.json:1"]
    assert origins([1], "origin") == ["row 2 of the encoded data"]


def test_rows_of_the_last_steps_of_a_stream_are_remembered(tmp_path):
    file = write_rows(tmp_path, "a", 80)
    stream = open_stream(tmp_path, file, disable_shuffling=True)
    stream.start()
    for first in range(8, 8 + 3 * 2 * NUM_REMEMBERED, 3):
        stream[range(first, first + 3)]

    assert stream.origins([first, first + 2]) == [f"{file}:{first - 7}", f"{file}:{first - 5}"]
    assert stream.origins([8]) == ["example 9 of the stream"]
