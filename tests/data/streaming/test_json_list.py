from __future__ import annotations

import io
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.check import RowProblem
from luthier.data.json_rows import read_list
from luthier.data.rows import RowOrProblem
from luthier.data.streaming.json_list import read_list_from

ROWS = st.lists(
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
    max_size=3,
)


def seen(row: RowOrProblem) -> tuple[object, ...]:
    """All of a row but its excerpt, which shows what stands behind it as far as it was read."""
    if isinstance(row, RowProblem):
        return row.origin, row.reason, row.position
    return str(row.origin), json.dumps(row.values)


@settings(max_examples=80, deadline=None)
@given(ROWS, st.sampled_from([None, 1]), DAMAGE, st.booleans(), st.sampled_from([1, 40, 300]))
def test_windows_of_any_size_and_any_position_give_the_rows_of_the_whole_text(
    tmp_path_factory, rows, indent, damage, has_mark, window_bytes
):
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    for at, length, put in damage:
        text = text[: at + 1] + put + text[at + 1 + length :]
    content = (b"\xef\xbb\xbf" if has_mark else b"") + text.encode()
    file = Path(tmp_path_factory.getbasetemp()) / "list.json"
    file.write_bytes(content)
    whole = [seen(row) for row in read_list(file, "f")]

    found = list(read_list_from(io.BytesIO(content), "f", window_bytes=window_bytes))

    assert [seen(row) for row, _, _ in found] == whole
    for at, (_, _, position) in enumerate(found, 1):
        rest = read_list_from(io.BytesIO(content), "f", json.loads(json.dumps(position)))
        assert [seen(row) for row, _, _ in rest] == whole[at:]


def test_only_a_window_of_a_long_list_is_in_memory():
    content = io.BytesIO(json.dumps([{"a": "x" * 1000}] * 2000, indent=1).encode())
    asked: list[int] = []
    read = content.read

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            asked.append(size or 0)
            return read(size)

        def seek(self, offset: int, whence: int = 0) -> int:
            return content.seek(offset, whence)

    assert len(list(read_list_from(Watched(), "f", window_bytes=1 << 16))) == 2000
    assert max(asked) < 1 << 18
