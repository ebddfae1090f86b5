"""What a dataset_info.json of somebody else may name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.catalog import Catalog, load_catalog
from luthier.data.sources import HubAccess, load_from_hub
from luthier.errors import DataError

ROW = json.dumps({"instruction": "a question", "output": "an answer"})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of data, and beside it what does not belong to it."""
    for folder in ("data/inner", "data_evil", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "rows.jsonl").write_text(ROW)
    (tmp_path / "data" / "link.jsonl").symlink_to(tmp_path / "other" / "rows.jsonl")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "near.jsonl").symlink_to(tmp_path / "data" / "inner" / "rows.jsonl")
    return tmp_path / "data"


def describe(
    home: Path, name: str, *, allow_outside: bool = False, key: str = "file_name", **more: Any
) -> Any:
    (home / "dataset_info.json").write_text(json.dumps({"rows": {key: name, **more}}))
    return load_catalog(home, allow_outside=allow_outside).describe("rows")


LEADING_OUT = (
    "../other/rows.jsonl",
    "../data_evil/rows.jsonl",
    "inner/../../other/rows.jsonl",
    "{outside}/other/rows.jsonl",
    "{outside}/data_evil/rows.jsonl",
    "/etc/passwd",
    "link.jsonl",
    "linked/rows.jsonl",
    "linked",
    "..",
    "/",
    "file:///etc/passwd",
    "file://{outside}/other/rows.jsonl",
)


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_name_that_leads_out_of_the_folder_is_refused_unless_it_is_allowed(home, name):
    name = name.format(outside=home.parent)

    with pytest.raises(DataError) as caught:
        describe(home, name)

    said = str(caught.value)
    assert "under 'rows'" in said
    assert name in said
    assert f"not in {home}" in said
    assert "allow_outside: true" in said
    assert describe(home, name, allow_outside=True).location


@pytest.mark.parametrize(
    "name", ["inner/rows.jsonl", "inner", "near.jsonl", "inner/../inner/rows.jsonl", "{home}/inner"]
)
def test_what_lies_in_the_folder_may_be_named_in_any_way(home, name):
    assert describe(home, name.format(home=home)).location


def test_a_cloud_file_on_this_machine_is_held_to_the_same(home):
    entry = {"rows": {"cloud_file_name": f"file://{home.parent}/other/rows.jsonl"}}
    (home / "dataset_info.json").write_text(json.dumps(entry))

    with pytest.raises(DataError, match="allow_outside"):
        load_catalog(home).describe("rows")


@pytest.mark.parametrize("key", ["hf_hub_url", "cloud_file_name"])
@pytest.mark.parametrize(
    "name", ["{outside}/other", "../other", "./linked", "data/linked", "other", "{outside}"]
)
def test_a_name_on_the_hub_that_is_a_path_is_held_to_the_same(home, monkeypatch, key, name):
    monkeypatch.chdir(home.parent)
    name = name.format(outside=home.parent)
    if key == "cloud_file_name":
        name = f"file://{Path(name).absolute()}"

    with pytest.raises(DataError, match=r"leads to .*, which is not in"):
        describe(home, name, key=key)
    assert describe(home, name, key=key, allow_outside=True).place == "file"


def test_a_path_in_the_folder_may_stand_for_a_name_on_the_hub(home, monkeypatch):
    monkeypatch.chdir(home.parent)

    found = describe(home, "data/inner", key="hf_hub_url")

    assert [file.name for file in found.find_files().files] == ["rows.jsonl"]


@pytest.mark.parametrize("name", ["json", "text", "csv", "parquet", "arrow", "webdataset"])
@pytest.mark.parametrize("allow_outside", [False, True])
def test_a_reader_of_the_library_is_no_name_on_the_hub(home, name, allow_outside):
    with pytest.raises(DataError, match=f"'{name}' is a reader of the library `datasets`"):
        describe(home, name, key="hf_hub_url", folder="x", allow_outside=allow_outside)


@pytest.mark.parametrize("folder", ["/etc", "../../other", "~/x", "a::file:///etc", "file:///etc"])
def test_a_folder_of_a_data_set_lies_in_it(home, folder):
    for key, name in (("hf_hub_url", "owner/name"), ("file_name", "inner")):
        with pytest.raises(DataError, match="leads out"):
            describe(home, name, key=key, folder=folder, allow_outside=True)


@pytest.mark.parametrize(
    "url",
    [
        "zip://rows.jsonl::file://{outside}/a.zip",
        "simplecache::file://{outside}/other/rows.jsonl",
        "dir://rows.jsonl::file://{outside}/other",
        "filecache::https://host/rows.jsonl",
        "reference://x",
        "git://{outside}:rows.jsonl",
        "https://host/a.zip::file:///etc/passwd",
    ],
)
def test_urls_that_read_this_machine_by_a_detour_are_refused(home, url):
    url = url.format(outside=home.parent)

    for key in ("cloud_file_name", "file_name"):
        with pytest.raises(DataError, match="may lead to files of this machine"):
            describe(home, url, key=key)
    assert describe(home, url, key="file_name", allow_outside=True).place == "cloud"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("hf_hub_url", "{outside}/other"),
        ("hf_hub_url", "other"),
        ("hf_hub_url", "text"),
        ("file_name", "inner/rows.jsonl"),
        ("cloud_file_name", "file:///etc/passwd"),
        ("cloud_file_name", "zip://a::file:///etc/passwd"),
    ],
)
def test_a_catalog_of_the_hub_names_no_file_of_this_machine(home, monkeypatch, key, name):
    monkeypatch.chdir(home.parent)
    entry = {"rows": {key: name.format(outside=home.parent)}}
    catalog = Catalog(entry, "REMOTE:owner/name", Path("."), is_remote=True)

    with pytest.raises(DataError, match=r"of this machine|is a reader"):
        catalog.describe("rows")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_readme_on_the_hub_names_no_file_of_this_machine(home, monkeypatch, is_streamed):
    import datasets

    configs = f"configs:\n- config_name: a\n  data_files: {home.parent}/other/rows.jsonl\n"
    (home / "inner" / "README.md").write_text(f"---\n{configs}---\n")
    load = datasets.load_dataset_builder
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda _, **given: load(str(home / "inner"), **given)
    )

    with pytest.raises(
        DataError, match=r"it names .*other/rows.jsonl, which is no file of the hub"
    ):
        load_from_hub(
            load_catalog("ONLINE").describe("owner/name"),
            HubAccess(str(home / "cache")),
            is_streamed=is_streamed,
        )


@pytest.mark.parametrize("name", ["a\0b", "", "x" * 5000, "inner/" * 900])
def test_what_is_no_path_is_one_sentence(home, name):
    with pytest.raises(DataError):
        describe(home, name).find_files()
    with pytest.raises(DataError):
        describe(home, "inner", folder=name).find_files()


def test_a_path_that_the_user_gives_is_his_own_word(home):
    outside = home.parent / "other" / "rows.jsonl"

    assert load_catalog(home).describe(str(outside)).location == str(outside)
    assert load_catalog({"rows": {"file_name": str(outside)}}).describe("rows").location
