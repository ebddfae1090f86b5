import json
from pathlib import Path

import pytest

from luthier.data.catalog import DatasetDescription, load_catalog
from luthier.data.check import RowProblem
from luthier.data.reader import Row
from luthier.data.sources import Source
from luthier.errors import DataError

ROWS = [{"instruction": f"question {n}", "input": "", "output": f"answer\n{n}"} for n in range(5)]


def source(path: Path) -> Source:
    return Source(DatasetDescription("user", "file", str(path)))


def read(path: Path) -> list[Row | RowProblem]:
    return list(source(path).rows())


def test_a_list_knows_the_line_of_each_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf\n\n" + json.dumps(ROWS, indent=2).encode())

    rows = read(path)

    lines = path.read_text(encoding="utf-8-sig").split("\n")
    starts = [number for number, line in enumerate(lines, 1) if line == "  {"]
    assert [row.origin.line for row in rows] == starts
    assert [row.values for row in rows] == ROWS


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_lines_know_their_numbers_and_blank_ones_are_fine(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    texts = [json.dumps(row) for row in ROWS]
    path.write_bytes(("\ufeff" + "\r\n\n".join(texts)).encode())

    rows = read(path)

    assert [row.origin.line for row in rows] == [1, 3, 5, 7, 9]
    assert [row.values for row in rows] == ROWS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b"hello", "not JSON"),
        (b'{"a": "\xff"}', "bytes that are not UTF-8"),
        (b"[" * 100_000, "too large"),
        (b"1" * 5000, "too large"),
    ],
)
def test_a_damaged_line_is_a_problem_at_its_line(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')

    first, problem, last = read(path)

    assert isinstance(problem, RowProblem)
    assert problem.origin == f"{path}:3"
    assert reason in str(problem)
    assert (first.values, last.values) == ({"a": 1}, {"a": 2})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps({"data": ROWS}, indent=1).encode(), "one object with the keys 'data'"),
        (json.dumps(ROWS).encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused_as_a_whole(tmp_path, content, words):
    path = tmp_path / "rows.json"
    path.write_bytes(content)

    with pytest.raises(DataError, match=words):
        read(path)


@pytest.mark.parametrize("text", ["[]", "[ ]", "", "\n\n"])
def test_nothing_is_no_rows(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)

    assert read(path) == []


def test_csv_rows_know_where_they_start(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,"two\nlines"\n3\n4,5\n', encoding="utf-8-sig")

    first, problem, last = read(path)

    assert (first.values, first.origin.line) == ({"a": "1", "b": "two\nlines"}, 2)
    assert problem.origin == f"{path}:4"
    assert (last.values, last.origin.line) == ({"a": "4", "b": "5"}, 5)


def test_text_lines_are_rows(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("one\n\ntwo\n")

    assert [(row.values["text"], row.origin.line) for row in read(path)] == [("one", 1), ("two", 3)]


@pytest.mark.parametrize("kind", ["parquet", "arrow-file", "arrow-stream"])
def test_columnar_files_give_the_same_rows(tmp_path, kind):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(ROWS)
    path = tmp_path / f"rows.{kind.partition('-')[0]}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        new = pyarrow.ipc.new_file if kind == "arrow-file" else pyarrow.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table)

    rows = read(path)

    assert [row.values for row in rows] == ROWS
    assert [row.origin.line for row in rows] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_damaged_columnar_file_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1 not really")

    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


def test_a_folder_gives_its_files_in_order_of_their_names(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"name": name}]))
    (tmp_path / "README.md").write_text("about")

    assert [row.values["name"] for row in read(tmp_path)] == ["a", "b", "c"]


def test_a_folder_of_two_kinds_or_none_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no file of the kinds"):
        source(tmp_path)
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "a.csv").write_text("")

    with pytest.raises(DataError, match=r"mixes kinds of files \(1 .csv, 1 .json\)"):
        source(tmp_path)


def test_the_hash_is_of_the_bytes(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[1]")
    before = source(path).hashes()
    path.write_text("[2]")

    assert source(path).hashes() != before


def test_the_hub_without_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(DataError, match=r"'owner/nothing' on the hub\): HF_HUB_OFFLINE"):
        Source(load_catalog("ONLINE").describe("owner/nothing"))


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("content", "given", "words"),
    [
        (b'{"a": 1}\n', {"split": "none"}, "none"),
        (b'{"a": 1}\n', {"subset": "none"}, "none"),
        (b'{"a": 1}\n{"a" 2}\n', {}, "cannot be loaded"),
        (b"\xff\xfe{", {}, "cannot be loaded"),
    ],
)
def test_an_error_of_the_hubs_library_is_one_sentence(
    tmp_path, monkeypatch, content, given, words, is_streamed
):
    import datasets

    from luthier.data import sources

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_bytes(content)
    load = datasets.load_dataset_builder
    monkeypatch.setattr(sources, "is_of_cloud", lambda _: True)
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda _, **given: load(str(tmp_path / "data"), **given)
    )
    description = DatasetDescription("user", "hub", "owner/name", **given)
    access = sources.HubAccess(str(tmp_path / "cache"))

    with pytest.raises(DataError) as raised:
        list(Source(description, access, in_place=is_streamed).rows())

    assert str(raised.value).startswith("data set 'user' ('owner/name' on the hub): it cannot be")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
