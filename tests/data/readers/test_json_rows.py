from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.check import EXCERPT_LENGTH, RowProblem
from luthier.data.reader import DataFile, Row
from luthier.data.readers.json_rows import read_list
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


def read(path: Path) -> tuple[list[Row | RowProblem], str]:
    """The rows up to a break, and what is said of it."""
    found: list[Row | RowProblem] = []
    said = ""
    try:
        for raw, _ in DataFile(path, str(path)).rows():
            found.append(raw.row())
    except DataError as error:
        said = str(error)
    for each in found:
        if isinstance(each, RowProblem):
            assert each.fix
            assert len(each.excerpt) <= EXCERPT_LENGTH
            assert each.excerpt.isprintable()
    return found, said


@ANYTHING_GOES
@given(data=st.data())
def test_a_lost_or_changed_character_of_a_line_costs_no_other_row(tmp_path, data):
    text = SHAPES["lines"]
    start = data.draw(st.integers(text.index("question 4"), text.index("answer\\n4")))
    instead = data.draw(st.sampled_from(["", '"', "\\", "{", "}", "[", "\0", "\ufeff", ":", ","]))
    path = tmp_path / "rows.json"
    path.write_text(text[:start] + instead + text[start + 1 :])

    found = [each.values for each in read(path)[0] if isinstance(each, Row)]

    assert [row for row in ROWS if row not in [*found, ROWS[4]]] == []


@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - {"lines"}))
@ANYTHING_GOES
@given(data=st.data())
def test_a_list_is_read_whole_or_its_break_is_named(tmp_path, shape, data):
    text = SHAPES[shape]
    start = data.draw(st.integers(text.index("question 4"), text.index("answer\\n4")))
    instead = data.draw(st.sampled_from(["", '"', "\\", "{", "}", "[", "\0", "\ufeff", ":", ","]))
    path = tmp_path / "rows.json"
    path.write_text(text[:start] + instead + text[start + 1 :])

    found, said = read(path)

    assert [each.values for each in found[:4] if isinstance(each, Row)] == ROWS[:4]
    assert len(found) == 9 or said.startswith(f"{path}:")
    if said:
        line, column = map(int, said.removeprefix(f"{path}:").partition(": ")[0].split(":"))
        assert sum(len(one) + 1 for one in text.split("\n")[: line - 1]) + column > start - 1


@ANYTHING_GOES
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode), shape=st.booleans())
def test_any_bytes_are_rows_or_problems(tmp_path, content, shape):
    path = tmp_path / "rows.json"
    path.write_bytes(b"[" + content if shape else content)

    assert all(isinstance(each, (Row, RowProblem)) for each in read(path)[0])


@ANYTHING_GOES
@given(data=st.data(), shape=st.sampled_from(sorted(SHAPES)))
def test_rows_with_pieces_taken_out_are_rows_or_problems(tmp_path, data, shape):
    text = SHAPES[shape]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + text[start + data.draw(st.integers(0, 60)) :]
    path = tmp_path / "rows.json"
    path.write_text(text)

    found, _ = read(path)

    lines = [
        each.origin.line if isinstance(each, Row) else int(each.origin.rpartition(":")[2])
        for each in found
    ]
    assert all(1 <= line <= text.count("\n") + 1 for line in lines)


@pytest.mark.parametrize(
    ("text", "place", "words", "num_rows"),
    [
        ('[\n{"a": 1},\n{"a" 2},\n{"a": 3}\n]', "3:6", "no colon", 1),
        ('[\n{"a": 1}\n{"a": 2}\n]', "3:1", "no comma behind the row", 1),
        ('[\n{"a": 1},\n\n]', "4:1", "a comma without a row", 1),
        ('[\n{"a": 1},\n{"a": 2}\n', "4:1", "ends inside", 2),
        ('[\n{"a": 1},\n{"a": 2', "3:8", "ends too early", 1),
        ('[\n{"a": "one\ntwo"},\n{"a": 2}\n]', "2:11", "control character", 0),
        ('[\n{"a": 1}\n]\n{"b": 2}', "4:1", "behind the end", 1),
        ('[\n{"a": 1}\n]\n,\n{"a": 2}\n]', "4:1", "behind the end", 1),
        ('[{"a": {"b": 1}, {"a": 2}, {"a": 3}]', "1:18", "no key", 0),
        ('[{"a": 1}, {"a": [{"b": 1}, 2}, {"a": 3}]', "1:30", "no comma between", 1),
        ('[\n  {\n    "a": "one,\n    "b": 2\n  }\n]', "3:15", "control character", 0),
        ('[\n{"a": 1},,\n{"a": 2}]', "2:10", "a comma without", 1),
        ('[\nNone,\n{"a": 2}]', "2:1", "no value", 0),
        ("[", "1:2", "ends inside", 0),
        ('[{"a": 1}, ' + "[" * 100_000, "1", "too large", 1),
    ],
)
def test_a_list_ends_at_its_first_break(tmp_path, text, place, words, num_rows):
    path = tmp_path / "rows.json"
    path.write_text(text)

    found, said = read(path)

    assert said.startswith(f"{path}:{place}: ")
    assert words in said
    assert ".jsonl" in said
    assert len(found) == num_rows


def test_a_row_of_a_list_with_a_key_twice_costs_no_other(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n{"a": 1, "a": 2},\n{"a": 2}]')

    (problem, row), said = read(path)

    assert not said
    assert isinstance(problem, RowProblem)
    assert "rows.json:2: a key stands twice ('a')" in str(problem)
    assert isinstance(row, Row)


VALUES = st.lists(
    st.fixed_dictionaries(
        {
            "a": st.sampled_from(["", "é😀 x", '{"a": y', "]\n["]),
            "b": st.lists(st.integers(0, 9), max_size=2),
        }
    ),
    max_size=4,
)
DAMAGE = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 2), st.sampled_from([*',"}{]\n\\[é', ""])),
    max_size=1,
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.sampled_from([None, 1]), DAMAGE, st.booleans(), st.sampled_from([1, 40, 300]))
def test_windows_of_any_size_and_any_position_give_the_rows_of_the_whole_text(
    tmp_path_factory, rows, indent, damage, has_mark, window_bytes
):
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    for at, length, put in damage:
        text = text[: at + 1] + put + text[at + 1 + length :]
    path = Path(tmp_path_factory.getbasetemp()) / "list.json"
    path.write_bytes((b"\xef\xbb\xbf" if has_mark else b"") + text.encode())
    file = DataFile(path, "f")

    def seen(position=None, **given):
        found = []
        try:
            for raw, behind in read_list(file, position, **given):
                found.append((str(raw.row()), json.loads(json.dumps(behind))))
        except DataError as error:
            return found, str(error).partition(" Here: ")[0]  # it shows what was read
        return found, ""

    whole, said = seen()

    assert seen(window_bytes=window_bytes) == (whole, said)
    if not damage:
        assert len(whole) == len(rows)
    for at, (_, position) in enumerate(whole, 1):
        assert seen(position) == (whole[at:], said)


def test_a_position_of_an_earlier_version_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, {"a": 2}]')

    with pytest.raises(DataError, match=r"earlier version.*ignore_data_skip"):
        list(DataFile(path, "f").rows([11, 1, '"a"', True]))


def test_only_a_window_of_a_long_list_is_in_memory(monkeypatch):
    content = io.BytesIO(json.dumps([{"a": "x" * 1000}] * 2000, indent=1).encode())
    asked: list[int] = []
    read_bytes = content.read

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            asked.append(size or 0)
            return read_bytes(size)

        def seek(self, offset: int, whence: int = 0) -> int:
            return content.seek(offset, whence)

    monkeypatch.setattr(DataFile, "open", lambda self: contextlib.nullcontext(Watched()))

    assert len(list(read_list(DataFile(Path("f"), "f"), window_bytes=1 << 16))) == 2000
    assert 0 <= min(asked)
    assert max(asked) < 1 << 18
