from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from luthier.arguments.parse import parse_dict
from luthier.data.cache import Store
from luthier.data.catalog import Columns, DatasetDescription
from luthier.data.reader import Parsed, Row
from luthier.data.report import Counts
from luthier.data.road import Encoding, read_records
from luthier.data.shards import Task, make_shards
from luthier.errors import DataError
from luthier.records import IGNORE_INDEX, Origin
from luthier.stages.stage import STAGES
from luthier.templates.template import TEMPLATES
from tests import tiny


def work(tokenizer: Any, purpose: Any = "learn", **options: Any) -> Encoding:
    named = Columns(train="train", weight="weight")
    description = DatasetDescription("rows", "file", "rows.json", "sharegpt", columns=named)
    given = {"dataset": ["rows"], "cutoff_len": 40, "preprocessing_batch_size": 4} | options
    arguments = parse_dict(given, purpose="data")
    stage = tiny.make_stage(arguments, tokenizer, TEMPLATES.get("chatml"))
    return Encoding(stage, stage.reading(description), purpose)


def row(number: int, *marks: Any, **columns: Any) -> Row:
    messages = []
    for at, mark in enumerate(marks or (None,)):
        messages.append({"from": "human", "value": f"question {number}.{at}"})
        said = {"from": "gpt", "value": f"answer {number} " * (number % 4 + 1)}
        messages.append(said | ({} if mark is None else {"weight": mark}))
    return Row({"conversations": messages} | columns, Origin("rows.json", number))


def tasks(rows: list[Row], size: int = 5) -> list[Task]:
    return [
        Task(number, start, tuple(Parsed(one, 1) for one in rows[start : start + size]))
        for number, start in enumerate(range(0, len(rows), size))
    ]


def make(folder: Path, given: Encoding, rows: list[Row], workers: int = 1) -> tuple[Any, Counts]:
    folder.mkdir()
    store = Store(folder)
    make_shards(given, tasks(rows), store, workers)
    counts, read = Counts(), []
    for number in sorted(store.shards):
        shard = store.shards[number]
        counts.add(shard.counts)
        with pyarrow.memory_map(str(folder / shard.name)) as file:
            read.append(pyarrow.ipc.open_stream(file).read_all())
    return pyarrow.concat_tables(read, promote_options="default"), counts


@pytest.mark.parametrize("purpose", ["learn", "answer"])
def test_two_workers_give_what_one_gives(tiny_tokenizer, tmp_path, purpose):
    rows = [row(number) for number in range(33)]

    alone, counted = make(tmp_path / "one", work(tiny_tokenizer, purpose), rows)
    shared, counted_too = make(tmp_path / "two", work(tiny_tokenizer, purpose), rows, workers=2)

    assert alone == shared
    assert alone["row"].to_pylist() == list(range(33))
    assert counted == counted_too
    assert counted.num_tokens_cut > 0


def test_shards_that_are_there_are_not_made_again(tiny_tokenizer, tmp_path):
    rows = [row(number) for number in range(20)]
    store = Store(tmp_path)
    make_shards(work(tiny_tokenizer), tasks(rows)[:2], store, 1)
    before = {number: shard.changed_ns for number, shard in store.shards.items()}

    make_shards(work(tiny_tokenizer), tasks(rows), store, 1)

    assert sorted(store.shards) == [0, 1, 2, 3]
    assert {number: store.shards[number].changed_ns for number in before} == before


def test_every_row_is_counted_once(tiny_tokenizer, tmp_path):
    rows: list[Any] = [row(number, number % 2, None) for number in range(12)]
    rows += [row(12, 0, 0), row(13, weight=0), row(14, train=False), Row("no object", None)]
    for policy in ("truncate", "drop", "split", "error"):
        given = work(tiny_tokenizer, cutoff_len=60, on_overlong=policy)

        table, counts = make(tmp_path / policy, given, rows)

        whole = counts.num_kept - counts.num_parts + counts.num_rows_split
        left_out = sum(counts.left_out.values())
        assert counts.num_read == len(rows) == whole + counts.num_skipped + left_out
        assert counts.num_skipped == 1
        assert counts.num_kept == table.num_rows
        assert counts.num_tokens == sum(table["num_tokens"].to_pylist())
        is_learned = [
            [one != IGNORE_INDEX for one in labels[1:]] for labels in table["labels"].to_pylist()
        ]
        assert table["num_units"].to_pylist() == [sum(marks) for marks in is_learned]
        assert (counts.num_rows_split > 0) == (policy == "split")
        assert (counts.num_rows_cut > 0) == (policy == "truncate")
        assert counts.longest > 60


def test_weights_are_a_column_only_where_a_row_has_some(tiny_tokenizer, tmp_path):
    rows = [row(1), row(2, 0), row(3, 1), row(4), row(5), row(6, 0.5, 0), row(7), row(8, weight=2)]
    given = work(tiny_tokenizer, cutoff_len=400)

    plain, _ = make(tmp_path / "plain", given, rows[:5])
    table, _ = make(tmp_path / "weighted", given, rows)

    assert "token_weight" not in plain.column_names
    weights = table["token_weight"].to_pylist()
    assert weights[:4] == [None] * 4  # the shard of the first rows has no such column
    pairs = zip(weights[4], table["labels"][4].as_py(), strict=True)
    assert {weight for weight, label in pairs if label != IGNORE_INDEX} == {0.5}
    assert weights[5] is None
    assert set(weights[6]) == {2}
    assert [len(weights[at]) for at in (4, 6)] == [table["num_tokens"][at].as_py() for at in (4, 6)]


class Deadly(tuple):
    def __iter__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_sentence_and_whole_shards_stay(tiny_tokenizer, tmp_path):
    rows = [row(number) for number in range(10)]
    store = Store(tmp_path)
    given = work(tiny_tokenizer)
    make_shards(given, tasks(rows)[:1], store, 1)

    with pytest.raises(DataError, match="fewer preprocessing_num_workers"):
        make_shards(given, [*tasks(rows), Task(2, 10, Deadly())], store, 2)

    assert 0 in store.shards


def test_rows_with_images_are_refused_one_by_one_and_those_without_are_read():
    description = DatasetDescription(
        "seen", "file", "seen.json", "sharegpt", columns=Columns(images="images")
    )
    rows = [row(1, images=["a.png"]), row(2, images=[]), row(3), row(4, images="b.png")]

    stage = STAGES.get("sft")(parse_dict({"dataset": ["seen"]}, purpose="data"))

    found, problems = read_records(rows, stage, stage.reading(description))

    assert [number for number, _ in found] == [1, 2]
    assert [(problem.origin, problem.field) for problem in problems] == [
        ("rows.json:1", "images"),
        ("rows.json:4", "images"),
    ]
    assert '"images" from "columns" of \'seen\'' in str(problems[0])
