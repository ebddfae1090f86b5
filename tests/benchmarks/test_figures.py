from __future__ import annotations

import pytest

from benchmarks import figures, material, sides


def test_a_ratio_is_of_neighbours_not_of_medians():
    spread = figures.ratios([2.0, 8.0, 3.0], [1.0, 2.0, 3.0])

    assert (spread.median, spread.least, spread.most) == (2.0, 1.0, 4.0)


def test_rows_of_earlier_calls_stay_when_columns_are_added(tmp_path):
    figures.Table("speed.py", str(tmp_path)).add({"ratio": 2})
    figures.Table("speed.py", str(tmp_path)).add({"ratio": 3, "side": "new"})

    rows = figures.Table("speed.py", str(tmp_path)).rows()

    assert [(row["ratio"], row["side"]) for row in rows] == [("2", ""), ("3", "new")]


def test_each_round_begins_with_another_side():
    assert list(sides.turns(["a", "b", "c"], 2)) == [
        (0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a"),
    ]  # fmt: skip


def test_a_side_that_fails_shows_the_end_of_its_log():
    with pytest.raises(SystemExit, match="no-such-way"):
        sides.run("material:no-such-way", {}, threads=1)


def test_rows_are_the_same_for_the_same_seed_and_about_as_long_as_alpacas():
    rows = list(material.make_rows(2000))

    lengths = sorted(len(row["output"].split()) for row in rows)
    assert rows == list(material.make_rows(2000))
    assert 60 < lengths[1000] < 120
    assert lengths[-1] <= material.MOST_ANSWER_WORDS
    assert all(4 <= len(row["instruction"].split()) <= 45 for row in rows)
