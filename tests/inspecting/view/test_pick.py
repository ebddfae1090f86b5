from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.arguments.parse import parse_dict
from luthier.data.catalog import load_catalog
from luthier.data.reading import DatasetReader
from luthier.errors import DataError
from luthier.inspecting.view.pick import pick_by_chance, pick_by_place, pick_first


@pytest.fixture
def reader(tmp_path: Path) -> DatasetReader:
    file = tmp_path / "data" / "rows.jsonl"
    file.parent.mkdir()
    rows = [json.dumps({"instruction": f"q{n}", "output": f"a{n}"}) for n in range(1, 3001)]
    rows[1] = "{"
    rows[2] = '{"instruction": "q3"}'
    file.write_text("\n".join(rows))
    arguments = parse_dict({"dataset": [str(file)]}, purpose="data")
    return DatasetReader(arguments, load_catalog({}), str(file))


def test_the_first_rows_are_shown_with_those_that_are_wrong(reader):
    first, broken, unanswered, fourth = pick_first(reader, 4)

    assert first.conversation is not None
    assert first.conversation.messages[0].content == "q1"
    assert broken.problem is not None
    assert "not JSON" in broken.problem.reason
    assert unanswered.values == {"instruction": "q3"}
    assert unanswered.problem is not None
    assert unanswered.problem.field == "output"
    assert fourth.origin.endswith("rows.jsonl:4")


def test_chance_draws_different_rows_and_the_same_for_a_seed(reader):
    drawn = {seed: [row.origin for row in pick_by_chance(reader, 5, seed)] for seed in (1, 2, 1)}
    again = [row.origin for row in pick_by_chance(reader, 5, 1)]
    lines = [int(origin.rpartition(":")[2]) for origin in drawn[1]]

    assert again == drawn[1] != drawn[2]
    assert lines == sorted(set(lines))
    assert max(lines) > 100


@pytest.mark.parametrize("place", ["rows.jsonl:1234", "data/rows.jsonl:1234"])
def test_a_place_is_found_by_the_end_of_its_path(reader, place):
    (row,) = pick_by_place([reader], [place])

    assert row.values == {"instruction": "q1234", "output": "a1234"}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("rows.jsonl:4000", "rows.jsonl:3000"),
        ("other.jsonl:1", "No file ends so"),
        ("ows.jsonl:1", "No file ends so"),
        ("rows.jsonl", "a file and a line"),
    ],
)
def test_a_place_where_no_row_starts_is_answered_with_the_nearest(reader, place, said):
    with pytest.raises(DataError, match=said):
        pick_by_place([reader], [place])
