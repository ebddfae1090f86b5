from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from luthier.data import reader, sources
from luthier.data.catalog import DatasetDescription
from luthier.data.reader import DataFile, RawRow, Row, parse
from luthier.data.shards import Task
from luthier.data.sources import HubAccess, Source
from luthier.errors import DataError

ROWS = [{"text": f"é {n}" + ' "a", b\n' * (n % 3), "n": str(n)} for n in range(23)]


def write_csv(file: Path) -> None:
    quoted = ["text,n", *('"' + r["text"].replace('"', '""') + f'",{r["n"]}' for r in ROWS)]
    quoted[7:7] = ["one,two,three", "", '"open']
    quoted[9] = "alone"
    file.write_text("\ufeff" + "\r\n".join(quoted), encoding="utf-8")


def write_parquet(file: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, row_group_size=5)


def write_stream(file: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table, max_chunksize=4)


WRITERS: dict[str, Any] = {
    "rows.jsonl": lambda file: file.write_text(
        "\n\n".join(map(json.dumps, ROWS)) + '\n{"a": \n[', encoding="utf-8-sig"
    ),
    "rows.json": lambda file: file.write_text(json.dumps(ROWS, indent=1)),
    "rows.csv": write_csv,
    "rows.tsv": lambda file: file.write_text("text\tn\n" + "a, b\t1\n" * 5),
    "rows.txt": lambda file: file.write_bytes(b"\xef\xbb\xbfone\r\n\r\n\xff two\nthree"),
    "rows.parquet": write_parquet,
    "rows.arrow": lambda file: pyarrow.feather.write_feather(
        pyarrow.Table.from_pylist(ROWS), file, chunksize=6, compression="uncompressed"
    ),
    "stream.arrow": write_stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_behind_any_position_are_those_that_follow(tmp_path, name):
    file = tmp_path / name
    WRITERS[name](file)
    source = Source(DatasetDescription("rows", "file", str(file)))
    whole = [str(row) for row in source.rows()]

    found = [(str(raw.row()), at) for raw, at in DataFile(file, str(file)).rows()]

    assert [row for row, _ in found] == whole
    assert len(whole) >= 3
    for number, (_, position) in enumerate(found, 1):
        rest = DataFile(file, str(file)).rows(json.loads(json.dumps(position)))
        assert [str(pickle.loads(pickle.dumps(raw)).row()) for raw, _ in rest] == whole[number:]


@pytest.mark.parametrize("sample_by", ["paragraph", "document"])
def test_paragraphs_and_whole_texts_are_those_of_the_cached_route(tmp_path, sample_by):
    file = tmp_path / "rows.txt"
    file.write_text("\ufeffone\ntwo\n\n \nthree\n\n\nfour\nfive\n\n")
    description = DatasetDescription("rows", "file", str(file), sample_by=sample_by)
    whole = list(map(str, Source(description).rows()))

    found = list(Source(description, in_place=True).raw_rows())

    assert [str(raw.row()) for raw, _ in found] == whole
    for number, (_, position) in enumerate(found, 1):
        rest = Source(description, in_place=True).raw_rows(position)
        assert [str(raw.row()) for raw, _ in rest] == whole[number:]


def test_files_of_a_folder_follow_each_other(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text(f'{{"n": "{name}"}}\n' if name != "b.jsonl" else "")
    rows = Source(DatasetDescription("rows", "file", str(tmp_path)), in_place=True)

    found = list(rows.raw_rows())

    assert [raw.row().values["n"] for raw, _ in found] == ["a.jsonl", "c.jsonl"]
    assert [raw.row().values["n"] for raw, _ in rows.raw_rows(found[0][1])] == ["c.jsonl"]
    assert len({*rows.hashes().values()}) == 3


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "rows.json"])
def test_a_cloud_file_is_read_where_it_lies(tmp_path, name):
    file = tmp_path / name
    WRITERS[name](file)
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/{tmp_path.name}/{name}", file.read_bytes())
    url = f"memory://{tmp_path.name}"
    here = [str(raw.row().values) for raw, _ in DataFile(file, name).rows() if is_row(raw)]

    rows = Source(DatasetDescription("rows", "cloud", url), in_place=True)
    found = [(raw, at) for raw, at in rows.raw_rows() if is_row(raw)]

    assert [str(raw.row().values) for raw, _ in found] == here
    rest = [str(e.row().values) for e, _ in rows.raw_rows(found[4][1]) if is_row(e)]
    assert rest == here[5:]
    with pytest.raises(DataError, match="cannot be fetched"):
        Source(DatasetDescription("rows", "cloud", "memory://nowhere/a.jsonl"), in_place=True)


def is_row(raw: RawRow) -> bool:
    return isinstance(raw.row(), Row)


def test_the_hubs_library_goes_on_behind_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "is_of_cloud", lambda _: True)  # these are of this machine
    folder = tmp_path / "set"
    folder.mkdir()
    for part in range(3):
        table = pyarrow.Table.from_pylist([{"n": 10 * part + n} for n in range(7)])
        pyarrow.parquet.write_table(table, folder / f"train-{part}.parquet", row_group_size=3)
    access = HubAccess(str(tmp_path / "cache"))
    rows = Source(DatasetDescription("rows", "hub", str(folder)), access, in_place=True)

    found = [(raw.row().values["n"], json.loads(json.dumps(at))) for raw, at in rows.raw_rows()]

    assert [n for n, _ in found] == [10 * part + n for part in range(3) for n in range(7)]
    for number, (_, position) in enumerate(found, 1):
        rest = [raw.row().values["n"] for raw, _ in rows.raw_rows(position)]
        assert rest == [n for n, _ in found[number:]]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_broken_table_is_named(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"not a table")

    with pytest.raises(DataError, match=f"{name}.*cannot be read as"):
        list(DataFile(file, str(file)).rows())


def test_lines_are_cut_into_the_same_rows(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(b'{"n": %d}' % n for n in range(100)) + b"\n")
    whole = [raw.row() for raw, _ in DataFile(path, "x").rows()]
    for size in (1, 7, 30, 10_000):
        monkeypatch.setattr(reader, "LEAST_BYTES", size)
        monkeypatch.setattr(reader, "MOST_BYTES", size)

        parts = list(DataFile(path, "x").chunks())

        assert [raw.row() for part in parts for raw in part] == whole
        assert len(whole) == 100
        assert [one.origin.line for one in whole if isinstance(one, Row)] == list(range(1, 200, 2))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt", "parquet"])
def test_picked_rows_are_those_of_their_numbers(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    texts = [f"text {n}" for n in range(50)]
    if suffix == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    elif suffix in ("csv", "txt"):
        path.write_text("\n".join((["text"] if suffix == "csv" else []) + texts))
    else:
        lines = [f'{{"text": "{text}"}}' for text in texts]
        path.write_text("[" + ",\n".join(lines) + "]" if suffix == "json" else "\n\n".join(lines))
    (part,) = DataFile(path, str(path)).chunks()

    picked = parse([*Task(0, 0, part, {3, 17, 49, 60}).rows()])
    first = parse([*Task(0, 0, part, range(2)).rows()])

    assert [one.values["text"] for one in picked] == ["text 3", "text 17", "text 49"]
    assert [one.values["text"] for one in first] == ["text 0", "text 1"]
    assert len([*part]) == 50
