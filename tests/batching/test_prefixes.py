"""how sequences begin alike: sorted as Python sorts lists, with what neighbours share"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.batching.prefixes import branches, find_prefixes

sequences = st.lists(
    st.lists(st.sampled_from([1, 2, 255, 256, 65536]), min_size=1, max_size=12),
    min_size=1,
    max_size=12,
)


def count_common(one, other):
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


@given(sequences)
def test_the_order_is_that_of_lists_of_numbers(rows):
    prefixes = find_prefixes(rows)

    assert [rows[each] for each in prefixes.order] == sorted(rows)
    assert sorted(prefixes.order) == list(range(len(rows)))


@given(sequences)
def test_what_any_two_share_is_the_least_between_neighbours(rows):
    prefixes = find_prefixes([np.array(row, np.int32) for row in rows])

    for one in range(len(rows)):
        for other in range(one + 1, len(rows)):
            first, second = rows[prefixes.order[one]], rows[prefixes.order[other]]
            assert min(prefixes.common[one + 1 : other + 1]) == count_common(first, second)


def test_a_run_branches_where_the_least_is_shared():
    assert branches([0, 5, 3, 9, 3], 0, 5) == (3, [0, 2, 4, 5])
    assert branches([0, 5, 3, 9, 3], 2, 4) == (9, [2, 3, 4])
