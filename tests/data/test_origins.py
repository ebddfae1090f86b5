"""the places of packed rows: grouped by file, in their order, each once"""

import pytest

from luthier.data.pack import MOST_NAMED, join_origins


@pytest.mark.parametrize(
    ("origins", "joined"),
    [
        ([], ""),
        (["rows.jsonl:3"], "rows.jsonl:3"),
        (["a.jsonl:3", "b.jsonl:9", "a.jsonl:1", "a.jsonl:3"], "a.jsonl:3, 1; b.jsonl:9"),
        (["", "a:b/c.txt:7"], "; a:b/c.txt:7"),
        (
            [f"a.txt:{n}" for n in range(MOST_NAMED + 5)],
            f"a.txt:{', '.join(map(str, range(MOST_NAMED)))} and 5 more",
        ),
    ],
)
def test_places_are_told_in_few_words(origins, joined):
    assert join_origins(origins) == joined
