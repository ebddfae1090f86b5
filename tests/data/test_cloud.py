from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from luthier.data.catalog import load_catalog, metric_names
from luthier.data.cloud import check_url, find_cloud_files
from luthier.data.files import pick_data_files
from luthier.data.reader import Row, file_name
from luthier.data.sources import HubAccess, Source
from luthier.errors import DataError

ROWS = [{"instruction": f"question {n}", "output": f"answer {n}"} for n in range(5)]
LINES = "\n".join(map(json.dumps, ROWS))


@pytest.fixture
def bucket():
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/rows.jsonl", LINES.encode())
    system.pipe("/bucket/parts/b.jsonl", LINES.encode())
    system.pipe("/bucket/parts/a.jsonl", LINES.encode())
    system.pipe("/bucket/parts/README.md", b"about")
    yield system
    system.rm("/bucket", recursive=True)


def test_a_url_is_a_data_set_like_any_other(bucket, tmp_path):
    entry = {"rows": {"cloud_file_name": "memory://bucket/rows.jsonl", "formatting": "alpaca"}}
    for description in (
        load_catalog(entry).describe("rows"),
        load_catalog({}).describe("memory://bucket/rows.jsonl"),
    ):
        source = Source(description, HubAccess(str(tmp_path)))

        rows = list(source.rows())

        assert description.place == "cloud"
        assert [row.values for row in rows if isinstance(row, Row)] == ROWS
        assert str(rows[2].origin) == "memory:///bucket/rows.jsonl:3"
        assert list(source.hashes()) == ["memory:///bucket/rows.jsonl"]


def test_a_folder_gives_its_data_files_in_order(bucket, tmp_path):
    copies, _ = find_cloud_files("rows", "memory://bucket/parts", folder=tmp_path)

    assert [url.rpartition("/")[2] for _, url in copies] == ["a.jsonl", "b.jsonl"]
    assert all(copy.read_text() == LINES for copy, _ in copies)


def test_a_file_is_fetched_once_until_it_changes(bucket, tmp_path, capsys):
    (first,), _ = find_cloud_files("rows", "memory://bucket/rows.jsonl", folder=tmp_path)
    (again,), _ = find_cloud_files("rows", "memory://bucket/rows.jsonl", folder=tmp_path)
    assert capsys.readouterr().err.count("fetching") == 1
    bucket.pipe("/bucket/rows.jsonl", b"{}")
    (changed,), _ = find_cloud_files("rows", "memory://bucket/rows.jsonl", folder=tmp_path)

    assert first == again != changed
    assert changed[0].read_text() == "{}"


def test_local_files_have_urls_too(tmp_path):
    (tmp_path / "rows.jsonl").write_text(LINES)

    ((copy, _),), _ = find_cloud_files(
        "rows", f"file://{tmp_path}/rows.jsonl", folder=tmp_path / "cache"
    )

    assert copy.read_text() == LINES


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://bucket/absent.jsonl", "cannot be fetched: FileNotFoundError"),
        ("memory://bucket", "no file of the kinds"),
        ("nowhere://bucket/rows.jsonl", "nowhere"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(bucket, tmp_path, url, words):
    bucket.rm("/bucket/rows.jsonl")

    with pytest.raises(DataError, match=words):
        find_cloud_files("rows", url, folder=tmp_path)


def test_an_unknown_protocol_is_known_before_anything_is_loaded():
    with pytest.raises(DataError, match="'rows': nowhere://a cannot be read"):
        check_url("rows", "nowhere://a")


def test_a_catalog_of_the_hub_may_not_name_files_of_this_machine(monkeypatch, tmp_path):
    from luthier.data import catalog

    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"rows": {"cloud_file_name": "file:///etc/rows.jsonl"}}))
    monkeypatch.setattr(catalog, "_fetch_catalog", lambda repository: Path(info))

    with pytest.raises(DataError, match="those named on the hub are not read"):
        catalog.load_catalog("REMOTE:owner/name").describe("rows")


def test_what_signs_a_url_is_no_part_of_the_files_name(tmp_path):
    paths = ["https://host/rows.jsonl?X-Amz-Signature=abc", "https://host/about.md?sig=abc"]

    assert pick_data_files("rows", "the URL", paths) == (paths[:1], "")
    assert [file_name(path) for path in paths] == ["rows.jsonl", "about.md"]
    assert file_name(str(tmp_path / "what?.json")) == "what?.json"
    assert metric_names(paths) == ["rows", "about"]


def test_errors_of_a_cloud_do_not_tell_the_password(tmp_path):
    with pytest.raises(DataError, match=r"memory://\*+@bucket/absent.jsonl cannot be fetched"):
        find_cloud_files("rows", "memory://me:secret@bucket/absent.jsonl", folder=tmp_path)
