"""the short form of fuzz.py"""

from __future__ import annotations

import pytest

from tests.chaos import fuzz

CHUNKS = (range(25), range(25, 50), range(50, 75), range(75, 100))


@pytest.mark.parametrize("numbers", CHUNKS, ids=str)
def test_every_run_ends_with_a_result_or_says_what_to_do(numbers, tmp_path):
    fuzz.make_workshop(tmp_path)

    ends = list(fuzz.try_runs(tmp_path, numbers))

    assert [end for end in ends if end.kind == "broke"] == []
    assert sum(end.kind == "result" for end in ends) >= len(numbers) // 5
