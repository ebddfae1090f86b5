"""the rows of a step: an Arrow table and plain columns read alike"""

import datasets
import numpy as np
import pytest

from luthier.batching.rows import RowReader, join, weights_of


class Plain:
    """A table of Python lists."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns["num_tokens"])

    def __getitem__(self, key):
        return {name: [values[each] for each in key] for name, values in self.columns.items()}


COLUMNS = {
    "input_ids": [[1], [2, 3, 4], [5, 6], [7, 8, 9, 10]],
    "labels": [[1], [-100, 3, 4], [-100, 6], [-100, -100, 9, 10]],
    "num_tokens": [1, 3, 2, 4],
    "num_learned": [0, 2, 1, 2],
    "origin": ["a:1", "a:2", "a:3", "a:4"],
}


def read(table, indices):
    examples, lengths, units, _ = RowReader(table, "num_learned")(indices)
    tokens = [(list(each["input_ids"]), list(each["labels"])) for each in examples]
    return tokens, lengths, units


@pytest.mark.parametrize("indices", [[2], [3, 0, 3, 1], []])
def test_arrow_and_plain_columns_give_the_same_rows(indices):
    table = datasets.Dataset.from_dict(COLUMNS)

    assert read(table, indices) == read(Plain(COLUMNS), indices)


def test_a_shuffled_and_sliced_table_gives_its_own_rows():
    table = datasets.concatenate_datasets([datasets.Dataset.from_dict(COLUMNS)] * 2)
    chosen = [6, 1, 4]

    tokens, lengths, units = read(table.select(chosen), [0, 1, 2])

    assert tokens == [
        (COLUMNS["input_ids"][each % 4], COLUMNS["labels"][each % 4]) for each in chosen
    ]
    assert (lengths, units) == ([2, 3, 1], [1, 2, 0])


def test_units_may_be_counted_by_the_column_of_tokens():
    examples, lengths, units, _ = RowReader(datasets.Dataset.from_dict(COLUMNS), "num_tokens")([1])

    assert (len(examples), lengths, units) == (1, [3], [3])


PACKED = COLUMNS | {"sequence_lengths": [[1], [1, 2], [2], [3, 1]]}


@pytest.mark.parametrize("make", [Plain, datasets.Dataset.from_dict])
def test_a_packed_row_gives_each_of_its_sequences(make):
    tokens, lengths, units = read(make(PACKED), [3, 1])

    assert tokens == [
        ([7, 8, 9], [-100, -100, 9]),
        ([10], [10]),
        ([2], [-100]),
        ([3, 4], [3, 4]),
    ]
    assert (lengths, units) == ([3, 1, 1, 2], [2, 2])


def test_joined_examples_stand_one_after_the_other():
    ids, labels, lengths = join(
        [
            {"input_ids": np.array([1, 2], np.int32), "labels": [-100, 2]},
            {"input_ids": [3], "labels": np.array([3], np.int32)},
        ]
    )

    assert (ids.tolist(), labels.tolist(), lengths.tolist()) == ([1, 2, 3], [-100, 2, 3], [2, 1])
    assert ids.dtype == labels.dtype == np.int64


def test_weights_are_read_where_a_row_has_some():
    weights = [None, [1.0, 0.5, 2.0], None, [1.0] * 4]
    columns = COLUMNS | {"weights": weights}

    for table in (Plain(columns), datasets.Dataset.from_dict(columns)):
        examples = RowReader(table, "num_learned")([3, 0, 1]).sequences

        assert ["weights" in each for each in examples] == [True, False, True]
        assert examples[2]["weights"].tolist() == [1, 0.5, 2]
        assert weights_of(examples, np.array([1, 4, 6, 7])).tolist() == [1, 1, 0.5, 2]
        assert weights_of(examples, np.array([1, 4])) is None


@pytest.mark.parametrize("make", [Plain, datasets.Dataset.from_dict])
def test_rows_without_weights_have_none(make):
    columns = COLUMNS | {"weights": [None, [1.0, 0.5, 2.0], None, None]}

    examples = RowReader(make(columns), "num_learned")([0, 2]).sequences

    assert not any("weights" in each for each in examples)
    assert weights_of(examples, np.array([0, 1])) is None
