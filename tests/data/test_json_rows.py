from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.check import EXCERPT_LENGTH, RowProblem
from luthier.data.rows import Row
from luthier.data.stretches import cut_file
from luthier.errors import DataError

ROWS = [{"instruction": f"question {n}", "input": "", "output": f"answer\n{n}"} for n in range(9)]
SHAPES = {
    "lines": "\n".join(map(json.dumps, ROWS)),
    "list of lines": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]",
    "indented list": json.dumps(ROWS, indent=2),
    "list on one line": json.dumps(ROWS),
}

ANYTHING_GOES = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(path: Path) -> list[Row | RowProblem]:
    found = [row for stretch in cut_file(path, str(path)) for row in stretch.rows()]
    for each in found:
        if isinstance(each, RowProblem):
            assert each.fix
            assert len(each.excerpt) <= EXCERPT_LENGTH
            assert each.excerpt.isprintable()
    return found


@pytest.mark.parametrize("shape", SHAPES)
@ANYTHING_GOES
@given(data=st.data())
def test_a_lost_or_changed_character_costs_no_other_row(tmp_path, shape, data):
    text = SHAPES[shape]
    start = data.draw(st.integers(text.index("question 4"), text.index("answer\\n4")))
    instead = data.draw(st.sampled_from(["", '"', "\\", "{", "}", "[", "\0", "\ufeff", ":", ","]))
    path = tmp_path / "rows.json"
    path.write_text(text[:start] + instead + text[start + 1 :])

    found = [each.values for each in read(path) if isinstance(each, Row)]

    assert [row for row in ROWS if row not in [*found, ROWS[4]]] == []


@ANYTHING_GOES
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode), shape=st.booleans())
def test_any_bytes_are_rows_or_problems(tmp_path, content, shape):
    path = tmp_path / "rows.json"
    path.write_bytes(b"[" + content if shape else content)

    with contextlib.suppress(DataError):
        assert all(isinstance(each, (Row, RowProblem)) for each in read(path))


@ANYTHING_GOES
@given(data=st.data(), shape=st.sampled_from(sorted(SHAPES)))
def test_rows_with_pieces_taken_out_are_rows_or_problems(tmp_path, data, shape):
    text = SHAPES[shape]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + text[start + data.draw(st.integers(0, 60)) :]
    path = tmp_path / "rows.json"
    path.write_text(text)

    found = read(path)

    lines = [
        each.origin.line if isinstance(each, Row) else int(each.origin.rpartition(":")[2])
        for each in found
    ]
    assert all(1 <= line <= text.count("\n") + 1 for line in lines)
