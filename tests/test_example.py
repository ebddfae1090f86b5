"""examples in a table: what is written is read, of any form"""

from array import array

import datasets
import numpy as np
import pyarrow
import pytest

from luthier.example import Example, as_batch, count_learned, read_examples, schema

EXAMPLES = [
    Example([1, 2, 3], [-100, 2, 3], 2, origin="a:1", row=4),
    Example(array("i", [5, 6, 7, 8]), array("i", [-100, 6, -100, 8]), 1, (2, 2), origin="a:2"),
    Example(np.array([5, 6]), np.array([5, 6]), 0, (1, 1), is_packed=True),
    Example(
        [1, 2, 3],
        [1, 2, 3],
        1,
        (1, 2),
        token_numbers={"weight": [1.0, 0.5, 2.0]},
        sequence_numbers={"margin": (0.25, -1.0)},
    ),
]


def same(one: Example, other: Example) -> bool:
    return (
        [*one.input_ids] == [*other.input_ids]
        and [*one.labels] == [*other.labels]
        and (one.num_units, one.lengths, one.is_packed, one.origin, one.row)
        == (other.num_units, other.lengths, other.is_packed, other.origin, other.row)
        and all(
            {name: [*each] for name, each in getattr(one, kind).items()}
            == {name: [*each] for name, each in getattr(other, kind).items()}
            for kind in ("token_numbers", "sequence_numbers")
        )
    )


def test_what_is_written_is_read():
    table = pyarrow.Table.from_batches([as_batch(EXAMPLES)])

    found = read_examples(table)

    assert all(map(same, found, EXAMPLES))
    assert table.schema == schema(["weight"], ["margin"])


def test_some_rows_of_a_data_set_are_read_in_any_order():
    table = pyarrow.Table.from_batches([as_batch(EXAMPLES)])
    dataset = datasets.concatenate_datasets([datasets.Dataset(table)] * 2).with_format("arrow")
    chosen = [6, 1, 3, 1]

    found = read_examples(dataset[chosen], chosen)

    assert [each.row for each in found] == chosen
    for each, number in zip(found, chosen, strict=True):
        assert [*each.input_ids] == [*EXAMPLES[number % 4].input_ids]
        assert each.lengths == EXAMPLES[number % 4].lengths


def test_a_table_without_the_further_columns_has_single_sequences():
    table = pyarrow.table({"input_ids": [[1, 2], [3]], "labels": [[1, 2], [3]]})

    found = read_examples(table)

    assert [each.sequence_lengths for each in found] == [(2,), (1,)]
    assert [(each.origin, each.row, each.num_units) for each in found] == [("", -1, 0)] * 2


def test_no_examples_are_an_empty_table():
    assert as_batch([]).num_rows == 0
    assert as_batch([]).schema == schema()
    assert read_examples(pyarrow.Table.from_batches([as_batch([])])) == []


def test_a_packed_example_comes_apart_and_another_one_does_not():
    packed = Example(
        np.arange(9),
        np.array([0, 1, -100, 3, -100, 5, 6, 7, 8]),
        4,
        (3, 2, 4),
        is_packed=True,
        token_numbers={"weight": np.arange(9.0)},
        origin="a:1, 2, 3",
        row=7,
    )

    parts = packed.apart()

    assert [part.input_ids.tolist() for part in parts] == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    assert [part.token_numbers["weight"][0] for part in parts] == [0, 3, 5]
    assert [part.num_units for part in parts] == [1, 0, 3]
    assert sum(part.num_units for part in parts) == packed.num_units
    assert {(part.lengths, part.is_packed, part.row) for part in parts} == {((), False, 7)}
    assert EXAMPLES[1].apart() == [EXAMPLES[1]]


@pytest.mark.parametrize("form", [list, np.array, lambda labels: array("i", labels)])
def test_the_first_token_of_a_sequence_is_never_predicted(form):
    assert count_learned(form([1, 2, -100, 4])) == 2
    assert count_learned(form([-100, 2, 3, 4]), (2, 2)) == 2
    assert count_learned(form([])) == 0
