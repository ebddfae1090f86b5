import datasets
import numpy
import pytest

from luthier.data.mixture import draw_rows, mix, place_drawn, split
from luthier.errors import DataError


def numbers(start: int, count: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"number": range(start, start + count)})


def test_drawing_takes_every_row_before_one_comes_again():
    fewer, more = draw_rows(10, 4, None, seed=1), draw_rows(10, 25, None, seed=1)

    assert len({*fewer.tolist()}) == 4
    assert sorted(more[:10].tolist()) == list(range(10))
    assert len(more) == 25
    assert draw_rows(10, 25, None, seed=1).tolist() == more.tolist()
    assert draw_rows(10, 25, None, seed=2).tolist() != more.tolist()
    assert draw_rows(10, 25, 3, seed=1).tolist() == more[:3].tolist()
    assert draw_rows(0, 25, None, seed=1).tolist() == []


def test_drawn_rows_are_found_where_they_stand_and_all_parts_of_them():
    rows = numpy.array([0, 2, 2, 5])

    assert place_drawn(rows, numpy.array([5, 2, 1, 5, 0])).tolist() == [3, 1, 2, 3, 0]
    assert place_drawn(rows, numpy.array([], int)).tolist() == []


def test_concat_keeps_the_order():
    assert mix([3, 2], "concat", (), 1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("strategy", "count"),
    [("interleave_under", 4), ("interleave_over", 10), ("interleave_once", 7)],
)
def test_interleaving_stops_as_its_name_says(strategy, count):
    mixed = mix([5, 2], strategy, (), 1)

    assert mixed[:4].tolist() == [0, 5, 1, 6]
    assert len(mixed) == count


def test_shares_draw_as_datasets_does():
    sets = [numbers(0, 50), numbers(50, 50)]

    mixed = mix([50, 50], "interleave_under", (0.8, 0.2), 7)

    expected = datasets.interleave_datasets(sets, probabilities=[0.8, 0.2], seed=7)
    assert mixed.tolist() == expected["number"][:]


@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.6), (-0.5, 1.5)])
def test_shares_that_are_none_are_an_error(shares):
    with pytest.raises(DataError, match="interleave_probs"):
        mix([5, 2], "interleave_over", shares, 1)


@pytest.mark.parametrize("val_size", [0.1, 0.25, 3, 1])
def test_the_split_is_that_of_datasets(val_size):
    size = val_size if val_size < 1 else int(val_size)

    train, kept = split(numpy.arange(40), val_size, seed=42)

    expected = numbers(0, 40).train_test_split(test_size=size, seed=42)
    assert train.tolist() == expected["train"]["number"][:]
    assert kept.tolist() == expected["test"]["number"][:]


def test_a_split_that_leaves_nothing_is_an_error():
    with pytest.raises(DataError, match="leaves nothing"):
        split(numpy.arange(4).repeat(3), 4, seed=1)


@pytest.mark.parametrize("val_size", [0.25, 3])
def test_the_places_of_a_row_go_the_same_way(val_size):
    rows = numpy.array([5, 1, 2, 1, 0, 3, 4, 5, 5, 6, 7, 8, 9, 0])

    train, kept = split(rows, val_size, seed=7)

    assert sorted([*train, *kept]) == list(range(len(rows)))
    assert not {*rows[train]} & {*rows[kept]}
    assert len({*rows[kept]}) == 3
