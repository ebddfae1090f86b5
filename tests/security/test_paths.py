"""What a dataset_info.json of somebody else may name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.catalog import load_catalog
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


def describe(home: Path, file_name: str, *, allow_outside: bool = False, **more: Any) -> Any:
    entry = {"file_name": file_name, **more}
    (home / "dataset_info.json").write_text(json.dumps({"rows": entry}))
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


def test_a_path_that_the_user_gives_is_his_own_word(home):
    outside = home.parent / "other" / "rows.jsonl"

    assert load_catalog(home).describe(str(outside)).location == str(outside)
    assert load_catalog({"rows": {"file_name": str(outside)}}).describe("rows").location
