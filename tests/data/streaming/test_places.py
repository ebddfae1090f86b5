from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from luthier.data import sources
from luthier.data.catalog import DatasetDescription
from luthier.data.rows import Row
from luthier.data.sources import HubAccess, Source
from luthier.data.streaming.places import DataFile
from luthier.data.streaming.sets import open_rows
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

    found = [(str(entry.row()), at) for entry, at in DataFile(file, str(file)).rows()]

    assert [row for row, _ in found] == whole
    assert len(whole) >= 3
    for number, (_, position) in enumerate(found, 1):
        rest = DataFile(file, str(file)).rows(json.loads(json.dumps(position)))
        assert [str(entry.to_send().row()) for entry, _ in rest] == whole[number:]


@pytest.mark.parametrize("sample_by", ["paragraph", "document"])
def test_paragraphs_and_whole_texts_are_those_of_the_cached_route(tmp_path, sample_by):
    file = tmp_path / "rows.txt"
    file.write_text("\ufeffone\ntwo\n\n \nthree\n\n\nfour\nfive\n\n")
    description = DatasetDescription("rows", "file", str(file), sample_by=sample_by)
    whole = list(map(str, Source(description).rows()))

    found = list(open_rows(description, HubAccess()).rows())

    assert [str(entry.row()) for entry, _ in found] == whole
    for number, (_, position) in enumerate(found, 1):
        rest = open_rows(description, HubAccess()).rows(position)
        assert [str(entry.row()) for entry, _ in rest] == whole[number:]


def test_files_of_a_folder_follow_each_other(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text(f'{{"n": "{name}"}}\n' if name != "b.jsonl" else "")
    rows = open_rows(DatasetDescription("rows", "file", str(tmp_path)), HubAccess())

    found = list(rows.rows())

    assert [entry.row().values["n"] for entry, _ in found] == ["a.jsonl", "c.jsonl"]
    assert [entry.row().values["n"] for entry, _ in rows.rows(found[0][1])] == ["c.jsonl"]
    assert len({*rows.stamps().values()}) == 3


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "rows.json"])
def test_a_cloud_file_is_read_where_it_lies(tmp_path, name):
    file = tmp_path / name
    WRITERS[name](file)
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/{tmp_path.name}/{name}", file.read_bytes())
    url = f"memory://{tmp_path.name}"
    here = [str(entry.row().values) for entry, _ in DataFile(file, name).rows() if is_row(entry)]

    rows = open_rows(DatasetDescription("rows", "cloud", url), HubAccess())
    found = [(entry, at) for entry, at in rows.rows() if is_row(entry)]

    assert [str(entry.row().values) for entry, _ in found] == here
    rest = [str(e.row().values) for e, _ in rows.rows(found[4][1]) if is_row(e)]
    assert rest == here[5:]
    with pytest.raises(DataError, match="cannot be fetched"):
        open_rows(DatasetDescription("rows", "cloud", "memory://nowhere/a.jsonl"), HubAccess())


def is_row(entry: Any) -> bool:
    return isinstance(entry.row(), Row)


def test_the_hubs_library_goes_on_behind_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_check_files", lambda *_: None)  # these are of this machine
    folder = tmp_path / "set"
    folder.mkdir()
    for part in range(3):
        table = pyarrow.Table.from_pylist([{"n": 10 * part + n} for n in range(7)])
        pyarrow.parquet.write_table(table, folder / f"train-{part}.parquet", row_group_size=3)
    access = HubAccess(str(tmp_path / "cache"))
    rows = open_rows(DatasetDescription("rows", "hub", str(folder)), access)

    found = [(entry.row().values["n"], json.loads(json.dumps(at))) for entry, at in rows.rows()]

    assert [n for n, _ in found] == [10 * part + n for part in range(3) for n in range(7)]
    for number, (_, position) in enumerate(found, 1):
        rest = [entry.row().values["n"] for entry, _ in rows.rows(position)]
        assert rest == [n for n, _ in found[number:]]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_broken_table_is_named(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"not a table")

    with pytest.raises(DataError, match=f"{name}.*cannot be read as"):
        list(DataFile(file, str(file)).rows())
