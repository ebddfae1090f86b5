from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from luthier.arguments.data import DataArguments
from luthier.data.catalog import check_datasets
from luthier.data.tokenized import FINGERPRINT
from luthier.errors import DataError
from luthier.templates.template import TEMPLATES
from tests import tiny
from tests.data.test_pipeline import load, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "rows", 40)
    write(tmp_path, "more", 10)
    entries = {name: {"file_name": f"{name}.jsonl"} for name in ("rows", "more")}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    return tmp_path


def content(found: Any) -> Any:
    kinds = (("eval", found.eval), ("predict", found.predict))
    named = {
        (kind, name): one.table.to_list() for kind, sets in kinds for name, one in sets.items()
    }
    return named | {"train": found.train is not None and found.train.table.to_list()}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"val_size": 0.2, "predict_with_generate": True},
        {"eval_dataset": "more,rows", "eval_on_each_dataset": True},
    ],
)
def test_what_is_written_is_read_again(folder, given, capsys):
    path = str(folder / "tokenized")
    written = load(folder, tokenized_path=path, **given)
    assert "is written to tokenized_path" in capsys.readouterr().err
    for file in (folder / "cache").rglob("*.arrow"):
        file.unlink()

    read = load(folder, tokenized_path=path, **given)

    assert "is read from tokenized_path" in capsys.readouterr().err
    assert content(read) == content(written)
    assert read.train.table.column_names == written.train.table.column_names  # type: ignore[union-attr]
    assert read.report.num_train == written.report.num_train
    assert all(one.was_cached for one in read.report.sets)
    assert not list(folder.glob(".*.part"))


def test_an_empty_folder_is_filled(folder):
    (folder / "tokenized").mkdir()

    load(folder, tokenized_path=str(folder / "tokenized"))

    assert (folder / "tokenized" / FINGERPRINT).is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cutoff_len": 99}, ["cutoff_len 2048, now 99"]),
        ({"template": TEMPLATES.get("vicuna")}, ["another template (chatml, now vicuna)"]),
        ({"tokenizer": tiny.make_tokenizer(vocab_size=390)}, ["another tokenizer"]),
        ({"dataset": "more"}, ["dataset: another content of data set 1"]),
        ({"dataset": "rows,more"}, ["1 data sets there, 2 now"]),
        ({"val_size": 0.5, "seed": 7}, ["val_size 0.0, now 0.5", "seed unset, now 7"]),
        ({"on_overlong": "drop", "max_samples": 3}, ["on_overlong truncate", "max_samples unset"]),
    ],
)
def test_a_folder_made_otherwise_is_refused_with_all_that_differs(folder, change, words):
    path = str(folder / "tokenized")
    load(folder, tokenized_path=path)

    with pytest.raises(DataError) as raised:
        load(folder, tokenized_path=path, **change)

    assert all(some in str(raised.value) for some in words)


def test_a_changed_byte_of_the_data_is_refused_and_absent_data_is_not(folder, capsys):
    path = str(folder / "tokenized")
    load(folder, tokenized_path=path)
    rows = folder / "rows.jsonl"
    rows.write_text(rows.read_text().replace("answer 39", "answer 38"))
    with pytest.raises(DataError, match="another content"):
        load(folder, tokenized_path=path)
    rows.unlink()

    found = load(folder, tokenized_path=path)

    assert len(found.train) == 40  # type: ignore[arg-type]
    assert "dataset is not on this machine and was not compared" in capsys.readouterr().err
    data = DataArguments(dataset="rows", dataset_dir=str(folder), tokenized_path=path)
    assert check_datasets(data) == []


def test_without_data_of_its_own_a_run_takes_what_is_there(folder):
    path = str(folder / "tokenized")
    load(folder, tokenized_path=path, val_size=0.2)

    found = load(folder, tokenized_path=path, dataset="")

    assert (len(found.train), len(found.eval[""])) == (32, 8)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no dataset is named"):
        load(folder, tokenized_path=str(folder / "absent"), dataset="")


def test_prompts_that_were_not_written_are_missed(folder):
    path = str(folder / "tokenized")
    load(folder, tokenized_path=path, val_size=0.2)

    with pytest.raises(DataError, match="holds no prompts"):
        load(folder, tokenized_path=path, val_size=0.2, predict_with_generate=True)


@pytest.mark.parametrize("name", ["luthier.json", "rows.txt"])
def test_a_folder_of_something_else_is_refused(folder, name):
    (folder / "tokenized").mkdir()
    (folder / "tokenized" / name).write_text("{")

    with pytest.raises(DataError, match=r"cannot be read|something else"):
        load(folder, tokenized_path=str(folder / "tokenized"))


def write_as_others_do(path: Path, highest: int = 300, **columns: Any) -> None:
    rows = {
        "input_ids": [[1, 2, highest], [3, 4]],
        "attention_mask": [[1, 1, 1], [1, 1]],
        "labels": [[-100, 2, highest], [3, -100]],
    }
    one = datasets.Dataset.from_dict(rows | columns)
    datasets.DatasetDict({"train": one, "validation": one.select([0])}).save_to_disk(str(path))


def test_a_folder_of_another_tool_is_read_with_a_warning(folder, capsys):
    write_as_others_do(folder / "tokenized", images=[None, None])

    found = load(folder, tokenized_path=str(folder / "tokenized"))

    assert "nothing could be compared" in capsys.readouterr().err
    assert found.train is not None
    assert found.train.table["num_tokens"][:] == [3, 2]
    assert found.train.table["num_units"][:] == [2, 0]
    assert found.train.table["input_ids"][:] == [[1, 2, 300], [3, 4]]
    assert len(found.eval[""]) == 1
    assert found.report.num_train == 2


def test_a_folder_with_the_columns_of_an_earlier_version_is_refused(folder):
    path = folder / "tokenized"
    load(folder, tokenized_path=str(path))
    (train,) = path.glob("*-train")
    earlier = datasets.load_from_disk(str(train)).rename_column("num_units", "num_learned")
    earlier.save_to_disk(str(folder / "earlier"))
    shutil.rmtree(train)
    (folder / "earlier").rename(train)

    with pytest.raises(DataError, match=r"an earlier version, .*num_learned.* Remove the folder"):
        load(folder, tokenized_path=str(path))


def test_a_folder_of_another_tool_and_another_tokenizer_is_refused(folder):
    write_as_others_do(folder / "tokenized", highest=50_000)

    with pytest.raises(DataError, match="the token 50,000"):
        load(folder, tokenized_path=str(folder / "tokenized"))
