import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.arguments.data import DataArguments
from luthier.data.catalog import OPENAI_TAGS, Columns, check_datasets, load_catalog
from luthier.errors import DataError


def write(folder: Path, entries: object) -> Path:
    (folder / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def describe(entry: object):
    return load_catalog({"user": entry}).describe("user")


def test_every_key_is_read():
    columns = {name: f"the {name}" for name in vars(Columns())}
    entry = {
        "hf_hub_url": "owner/name",
        "formatting": "sharegpt",
        "ranking": True,
        "subset": "small",
        "split": "test",
        "folder": "en",
        "num_samples": 7,
        "columns": columns,
        "tags": {"role_tag": "who", "system_tag": None},
        "file_sha1": "0",
    }

    found = describe(entry)

    assert (found.place, found.location, found.formatting) == ("hub", "owner/name", "sharegpt")
    assert (found.ranking, found.subset, found.split) == (True, "small", "test")
    assert (found.folder, found.num_samples) == ("en", 7)
    assert vars(found.columns) == columns
    assert (found.tags.role_tag, found.tags.system_tag) == ("who", None)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, Columns()),
        ({"response": "answer"}, Columns(response="answer")),
        ({"prompt": "question"}, Columns(prompt="question", query=None)),
        ({"query": "question"}, Columns(prompt=None, query="question")),
        ({"query": None}, Columns(query=None)),
        ({"prompt": None, "query": "a"}, Columns(prompt=None, query="a")),
        ({"messages": "chat", "tools": "b"}, Columns(messages="chat", tools="b")),
        ({"weight": "weight"}, Columns(weight="weight")),
    ],
)
def test_what_is_named_is_read_and_the_rest_of_its_group_is_not(columns, expected):
    assert describe({"file_name": "a.json", "columns": columns}).columns == expected


def test_partial_tags_keep_the_other_defaults():
    found = describe({"file_name": "a.json", "tags": {"role_tag": "role"}})

    assert (found.tags.role_tag, found.tags.user_tag) == ("role", "human")


def test_openai_has_its_own_tags():
    assert describe({"file_name": "a", "formatting": "openai"}).tags == OPENAI_TAGS


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"filename": "a.json"}, ["'filename'", "file_name"]),
        ({"file_name": "a", "columns": {"respons": "b"}}, ["'respons'", "'response'"]),
        ({"file_name": "a", "tags": {"roletag": "b"}}, ["'roletag'", "'role_tag'"]),
        ({"file_name": "a", "formatting": "sharegtp"}, ["'sharegtp'", "'sharegpt'"]),
        ({"file_name": 3}, ["file_name", "a number", "a text"]),
        ({"file_name": "a", "ranking": "yes"}, ["ranking", "true or false"]),
        ({"file_name": "a", "num_samples": 0}, ["num_samples", "above 0"]),
        ({"script_url": "x"}, ["script_url", "not run"]),
        ({"ms_hub_url": "x"}, ["ModelScope"]),
        ({"om_hub_url": "x"}, ["Modelers"]),
        ({"cloud_file_name": "x/rows.jsonl"}, ["no URL", "s3://"]),
        ({}, ["file_name"]),
        ([], ["an object", "a list"]),
    ],
)
def test_a_wrong_description_says_what_to_mend(entry, words):
    with pytest.raises(DataError) as raised:
        describe(entry)

    assert all(word in str(raised.value) for word in words)


def test_all_problems_of_a_description_come_at_once():
    with pytest.raises(DataError) as raised:
        describe({"file_name": "a", "formating": "x", "columns": {"promt": "y"}, "split": 3})

    assert str(raised.value).count("\n") == 2


def test_an_unknown_name_gets_the_nearest_and_the_file(tmp_path):
    catalog = load_catalog(write(tmp_path, {"identity": {"file_name": "a.json"}}))

    with pytest.raises(DataError, match=r"'identty' is unknown.*dataset_info.json.*'identity'"):
        catalog.describe("identty")


def test_a_path_needs_no_catalog(tmp_path):
    (tmp_path / "rows.json").write_text("[]")

    found = load_catalog(tmp_path).describe(str(tmp_path / "rows.json"))
    relative = load_catalog(tmp_path).describe("rows.json")

    assert found.formatting is None
    assert found.location == relative.location == str(tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": {}, "a": {}}', "'a' stands there twice"),
        (b'{\n"a": {},\n}', ":3, column 1"),
        (b"[]", "a list"),
        (b'{"\xff": 1}', "byte 2 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_an_unreadable_catalog_is_an_error_with_its_place(tmp_path, content, words):
    (tmp_path / "dataset_info.json").write_bytes(content)

    with pytest.raises(DataError, match=words):
        load_catalog(tmp_path)


def test_a_byte_order_mark_and_any_alphabet_are_read(tmp_path):
    text = json.dumps({"提琴": {"file_name": "a.json"}}, ensure_ascii=False)
    (tmp_path / "dataset_info.json").write_bytes(text.encode("utf-8-sig"))

    assert load_catalog(tmp_path).describe("提琴").location == str(tmp_path / "a.json")


def test_online_names_are_the_hubs():
    found = load_catalog("ONLINE").describe("owner/name")

    assert (found.place, found.location) == ("hub", "owner/name")


def test_a_catalog_of_the_hub_without_network_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = DataArguments(dataset=("songs",), dataset_dir="REMOTE:owner/nothing")

    (problem,) = check_datasets(arguments)

    assert problem.startswith("dataset_dir 'REMOTE:owner/nothing': HF_HUB_OFFLINE is set")
    assert "use a local folder" in problem


def test_all_that_can_be_known_at_once_is_known_at_once(tmp_path):
    entries = {"gone": {"file_name": "gone.json"}, "pairs": {"file_name": "p", "ranking": True}}
    arguments = DataArguments(
        dataset=("gone", "nobody", "pairs"),
        eval_dataset=("nobody",),
        dataset_dir=str(write(tmp_path, entries)),
    )

    problems = check_datasets(arguments)

    assert len(problems) == 3
    assert "gone.json" in problems[0]
    assert "'nobody'" in problems[1]
    assert "'pairs'" in problems[2]


def test_the_check_imports_nothing_heavy():
    program = (
        "import sys, luthier.data.catalog, luthier.data.pipeline;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout.strip() == "[]"
