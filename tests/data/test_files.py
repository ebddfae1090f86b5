import json
from pathlib import Path

import pytest

from luthier.data.catalog import load_catalog
from luthier.data.sources import HubAccess, Source
from luthier.errors import DataError

ULTRACHAT = [f"{split}-00000-of-00001.parquet" for split in ("test_gen", "test_sft", "train_sft")]


def make(folder: Path, *files: str) -> Path:
    """Files of one row each, which holds the file's name."""
    import datasets

    for one in files:
        (folder / one).parent.mkdir(parents=True, exist_ok=True)
        rows = datasets.Dataset.from_list([{"text": one}])
        if one.endswith(".parquet"):
            rows.to_parquet(folder / one)
        else:
            (folder / one).write_text(json.dumps({"text": one}))
    return folder


def read(rows: Path, /, **entry: object) -> list[str]:
    """The texts of a data set beside its dataset_info.json, by both ways of reading."""
    home = rows.parent
    entry = {"file_name": rows.name} | entry
    (home / "dataset_info.json").write_text(json.dumps({"rows": entry}))
    description = load_catalog(home).describe("rows")
    access = HubAccess(str(home / "cache"))

    written = [row.values["text"] for row in Source(description, access).rows()]
    streamed = [r.values["text"] for r in Source(description, access, in_place=True).rows()]

    assert written == streamed
    return written


@pytest.mark.parametrize(
    ("files", "split", "read_ones"),
    [
        (["a.json", "b.json"], None, ["a.json", "b.json"]),
        (["train.json", "test.json", "more.json"], None, ["more.json", "train.json"]),
        (["train.json", "test.json", "more.json"], "train", ["more.json", "train.json"]),
        (["train.json", "test.json"], "test", ["test.json"]),
        (["my_dev_rows.json", "train_0.json"], "validation", ["my_dev_rows.json"]),
        (["eval/a.json", "train/a.json", "train/b.json"], None, ["train/a.json", "train/b.json"]),
        (["test.json"], None, ["test.json"]),
        (["part-00000-of-00002.json", "part-00001-of-00002.json"], None, [0, 1]),
        (ULTRACHAT, None, ULTRACHAT[2:]),
        (ULTRACHAT, "test_sft", ULTRACHAT[1:2]),
        ([f"data/{one}" for one in ULTRACHAT], "train", [f"data/{ULTRACHAT[2]}"]),
        (["train.parquet", "test.json"], None, ["train.parquet"]),
        (["config.json", "dataset_infos.json", "rows.parquet"], None, ["rows.parquet"]),
        (["latest.json", "contest.json"], None, ["contest.json", "latest.json"]),
    ],
)
def test_files_that_are_named_by_split_belong_to_it(tmp_path, files, split, read_ones):
    folder = make(tmp_path / "rows", *files)
    wanted = [files[one] if isinstance(one, int) else one for one in read_ones]

    assert read(folder, split=split) == wanted


def test_files_of_other_splits_are_told(tmp_path):
    folder = make(tmp_path / "rows", "train.json", "more.json", "test.json", "dev.json", "val.json")
    read(folder)

    told = load_catalog(tmp_path).describe("rows").find_files().told

    others = "others are not (2 of 'validation', 1 of 'test')"
    assert told == f"files of no split and 'train' are read (2), {others}"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"split": "test"}, ["no split 'test'", "'train_gen', 'train_sft'"]),
        ({}, ["several splits", "'train_gen', 'train_sft'", '"split"']),
        ({"subset": "en"}, ["no subset 'en'", "names none"]),
        ({"folder": "none"}, ["rows/none is not there"]),
        ({"folder": "../other"}, ["'../other' leads out"]),
        ({"subset": "en", "folder": "x"}, ["subset 'en' and folder 'x'", "one of"]),
        ({"file_name": "more.txt", "split": "test"}, ['"split"', "is one file", "away"]),
        ({"file_name": "more.txt", "folder": "a"}, ['"folder"', "is one file", "away"]),
        ({"file_name": "more.txt", "subset": "a"}, ['"subset"', "is one file", "away"]),
        (
            {"cloud_file_name": "s3://b/rows", "subset": "a"},
            ['"subset" is of data sets of the hub'],
        ),
    ],
)
def test_what_is_asked_of_a_folder_and_is_not_there_is_an_error(tmp_path, entry, words):
    shards = [f"{split}-00000-of-00001.txt" for split in ("train_sft", "train_gen")]
    folder = make(tmp_path / "rows", *shards, "inner/more.txt")
    make(tmp_path, "more.txt")

    with pytest.raises(DataError) as raised:
        read(folder, **entry)

    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_what_save_to_disk_wrote_is_read(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(25)]})
    rows.save_to_disk(tmp_path / "one", num_shards=12)
    both = datasets.DatasetDict({"train": rows.select(range(2)), "test": rows.select([4, 3])})
    both.save_to_disk(tmp_path / "two")

    assert read(tmp_path / "one") == rows["text"][:]
    assert read(tmp_path / "two") == ["row 0", "row 1"]
    assert read(tmp_path / "two", split="test") == ["row 4", "row 3"]
    assert read(tmp_path / "two", folder="test") == ["row 4", "row 3"]
    with pytest.raises(DataError, match=r"has no split 'dev'. There are: 'train', 'test'"):
        read(tmp_path / "two", split="dev")


README = """\
---
license: mit
configs:
- config_name: en
  default: true
  data_files:
  - split: train
    path: en/main/**
  - split: held_out
    path: ["en/other/x*.json"]
- config_name: de
  data_files: de/*.json
- config_name: fr
  data_dir: fr
---
# A data set
"""


@pytest.mark.parametrize(
    ("entry", "read_ones"),
    [
        ({}, ["en/main/a.json", "en/main/b.json"]),
        ({"subset": "en", "split": "held_out"}, ["en/other/x.json"]),
        ({"subset": "de"}, ["de/test.json"]),
        ({"subset": "fr"}, ["fr/train.json"]),
        ({"subset": "fr", "split": "test"}, ["fr/test.json"]),
        ({"folder": "en/other"}, ["en/other/x.json", "en/other/y.json"]),
    ],
)
def test_the_readme_of_a_copied_data_set_says_what_is_read(tmp_path, entry, read_ones):
    folder = make(tmp_path / "ro[w]s", *(f"en/{one}.json" for one in ("main/a", "main/b")))
    make(folder, "en/other/x.json", "en/other/y.json", "fr/train.json", "fr/test.json")
    make(folder, "de/test.json", ".git/lost.json")
    (folder / "README.md").write_text(README)

    found = read(folder, **entry)

    assert found == read_ones


@pytest.mark.parametrize("path", ["../secret/a.json", "{outside}/secret/a.json", "file:///etc/*"])
def test_nothing_in_a_folder_leads_out_of_it(tmp_path, path):
    outside = make(tmp_path / "secret", "a.json")
    path = path.format(outside=tmp_path)
    folder = make(tmp_path / "home" / "rows", "b.json")
    readme, state = folder / "README.md", folder / "state.json"
    readme.write_text(f"---\nconfigs:\n- config_name: a\n  data_files: {path!r}\n---\n")

    with pytest.raises(DataError, match="inside the data set"):
        read(folder)

    readme.unlink()
    state.write_text(json.dumps({"_data_files": [{"filename": path}]}))
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match="inside the data set"):
        read(folder)

    state.unlink()
    (folder / "c.json").symlink_to(outside / "a.json")
    with pytest.raises(DataError, match=r"c.json leads to .*secret/a.json, which is not in"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", {"_data_files": 3}),
        ("state.json", {"_data_files": [3]}),
        ("state.json", {"_data_files": [{}]}),
        ("state.json", {"_data_files": [{"filename": "gone.arrow"}]}),
        ("state.json", {"_data_files": [{"filename": "state.lock"}]}),
        ("state.json", [3]),
        ("state.json", {"_data_files": [], "_indices_files": ["a.arrow"]}),
        ("dataset_dict.json", {"splits": 3}),
        ("dataset_dict.json", {"splits": [3]}),
        ("dataset_dict.json", {"splits": ["train"]}),
        ("dataset_dict.json", None),
        ("README.md", "---\nconfigs: [\n---\n"),
        ("README.md", "---\nconfigs:\n- config_name: a\n  data_files: 3\n---\n"),
        ("README.md", "---\nconfigs:\n- config_name: a\n  data_files: [{x: 3}]\n---\n"),
        ("README.md", "---\nconfigs:\n- config_name: a\n- config_name: b\n---\n"),
        ("README.md", "---\nconfigs:\n- config_name: a\n  data_files: none*\n---\n"),
    ],
)
def test_a_folder_that_describes_itself_wrongly_is_one_sentence(tmp_path, file, content):
    folder = make(tmp_path / "rows", "a.json", "dataset_info.json")
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))

    with pytest.raises(DataError, match=r"^data set 'rows': [^\n]*$"):
        read(folder)


def test_a_pointer_of_git_lfs_is_told_as_such(tmp_path):
    folder = make(tmp_path / "rows", "a.json")
    (folder / "b.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")

    with pytest.raises(DataError, match=r"b.json is a pointer of Git LFS.*git lfs pull"):
        read(folder)
