import datasets
import pytest

from luthier.data.mixing import mix, pick_rows, split
from luthier.errors import DataError


def numbers(start: int, count: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"number": range(start, start + count)})


def test_the_first_rows_are_picked_without_drawing():
    assert pick_rows(10, None, 3, seed=1) == [0, 1, 2]
    assert pick_rows(2, None, 3, seed=1) == [0, 1]


def test_drawing_takes_every_row_before_one_comes_again():
    fewer, more = pick_rows(10, 4, None, seed=1), pick_rows(10, 25, None, seed=1)

    assert len(set(fewer)) == 4
    assert sorted(more[:10]) == list(range(10))
    assert len(more) == 25
    assert pick_rows(10, 25, None, seed=1) == more != pick_rows(10, 25, None, seed=2)


def test_concat_keeps_the_order():
    assert mix([numbers(0, 3), numbers(10, 2)], "concat", (), 1)["number"][:] == [0, 1, 2, 10, 11]


@pytest.mark.parametrize(
    ("strategy", "count"),
    [("interleave_under", 4), ("interleave_over", 10), ("interleave_once", 7)],
)
def test_interleaving_stops_as_its_name_says(strategy, count):
    mixed = mix([numbers(0, 5), numbers(10, 2)], strategy, (), 1)

    assert mixed["number"][:4] == [0, 10, 1, 11]
    assert len(mixed) == count


def test_shares_draw_as_datasets_does():
    sets = [numbers(0, 50), numbers(100, 50)]

    mixed = mix(sets, "interleave_under", (0.8, 0.2), 7)

    expected = datasets.interleave_datasets(sets, probabilities=[0.8, 0.2], seed=7)
    assert mixed["number"][:] == expected["number"][:]


@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.6), (-0.5, 1.5)])
def test_shares_that_are_none_are_an_error(shares):
    with pytest.raises(DataError, match="interleave_probs"):
        mix([numbers(0, 5), numbers(10, 2)], "interleave_over", shares, 1)


@pytest.mark.parametrize("val_size", [0.1, 0.25, 3, 1])
def test_the_split_is_that_of_datasets(val_size):
    whole = numbers(0, 40)
    size = val_size if val_size < 1 else int(val_size)

    train, kept = split(whole, val_size, seed=42)

    expected = whole.train_test_split(test_size=size, seed=42)
    assert train["number"][:] == expected["train"]["number"][:]
    assert kept["number"][:] == expected["test"]["number"][:]


def test_a_split_that_leaves_nothing_is_an_error():
    with pytest.raises(DataError, match="leaves nothing"):
        split(numbers(0, 4), 4, seed=1)
