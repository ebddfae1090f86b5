from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.data.pack import best_fit

lengths_lists = st.lists(st.integers(1, 50), max_size=60)


@given(lengths_lists)
def test_every_number_is_in_one_group_that_fits(lengths: list[int]):
    groups = best_fit(lengths, 50)

    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in group) <= 50 for group in groups)


@given(lengths_lists)
def test_no_two_groups_would_fit_into_one(lengths: list[int]):
    totals = sorted(sum(lengths[number] for number in group) for group in best_fit(lengths, 50))

    assert len(totals) < 2 or totals[0] + totals[1] > 50


@given(lengths_lists)
def test_groups_keep_the_order_of_the_rows(lengths: list[int]):
    groups = best_fit(lengths, 50)

    assert groups == sorted(groups)
    assert all(group == sorted(group) for group in groups)


def test_a_row_goes_where_it_leaves_the_least_room():
    assert best_fit([6, 7, 3, 4], 10) == [[0, 3], [1, 2]]
