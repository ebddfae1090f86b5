import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from luthier.arguments.data import DataArguments
from luthier.arguments.finetuning import FinetuningArguments
from luthier.arguments.model import ModelArguments
from luthier.arguments.training import TrainingArguments
from luthier.data import reader, shards
from luthier.data.catalog import ToolTurns
from luthier.data.pipeline import EncodedDatasets, load_datasets
from luthier.data.road import Encoding
from luthier.errors import DataError
from luthier.example import ExampleSet, schema
from luthier.records import IGNORE_INDEX
from luthier.stages.conversing import find_tool_turns
from luthier.templates.fit import choose_template
from luthier.templates.template import TEMPLATES
from tests import tiny

CHATML = TEMPLATES.get("chatml")
CUT = 20
"""Room for what frames a row of `write`, not for all of it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "rows", 40)
    write(tmp_path, "more", 10)
    entries = {name: {"file_name": f"{name}.jsonl"} for name in ("rows", "more")}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    return tmp_path


def write(folder: Path, name: str, count: int, *bad: str) -> None:
    rows = [
        json.dumps({"instruction": f"{name} question {n}", "output": f"answer {n}"})
        for n in range(count)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join([*bad, *rows]))


def load(
    folder: Path, template: Any = CHATML, tokenizer: Any = None, **given: Any
) -> EncodedDatasets:
    training = {
        name: given.pop(name) for name in ("predict_with_generate", "seed") if name in given
    }
    arguments = SimpleNamespace(
        model=ModelArguments(model_name_or_path="tiny", cache_dir=str(folder / "cache")),
        data=DataArguments(**({"dataset": "rows", "dataset_dir": str(folder)} | given)),
        training=TrainingArguments(output_dir="out", do_train=True, **training),
        finetuning=FinetuningArguments(),
    )
    stage = tiny.make_stage(arguments, tokenizer or tiny.make_tokenizer(), template)
    return load_datasets(arguments, stage)  # type: ignore[arg-type]


def origins(found: ExampleSet) -> list[str]:
    return [Path(origin).name for origin in found.table["origin"]]


def was_cached(found: EncodedDatasets) -> bool:
    return all(one.was_cached for one in found.report.sets)


@pytest.mark.parametrize("name", ["00000.arrow", "manifest.json"])
def test_a_cache_that_was_cut_short_is_noticed(folder, name):
    whole = load(folder).train.table
    assert whole is not None
    rows = whole.to_list()
    (file,) = (folder / "cache").rglob(name)
    content = file.read_bytes()[:100]
    file.unlink()  # the rows above are read from the file that was there
    file.write_bytes(content)

    found = load(folder)

    assert not was_cached(found)
    assert found.train is not None
    assert found.train.table.to_list() == rows
    assert was_cached(load(folder))


def test_rows_arrive_encoded_with_counts_and_origins(folder):
    found = load(folder)

    assert found.train is not None
    assert found.train.table.column_names == schema().names
    assert origins(found.train) == [f"rows.jsonl:{line}" for line in range(1, 41)]
    row = found.train.table[7]
    text = tiny.make_tokenizer().decode(row["input_ids"])
    assert text == (
        "<|im_start|>user\nrows question 7<|im_end|>\n<|im_start|>assistant\nanswer 7<|im_end|>\n"
    )
    assert row["num_tokens"] == len(row["input_ids"])
    assert row["num_units"] == sum(label != IGNORE_INDEX for label in row["labels"][1:])
    assert (found.eval, found.predict, found.report.num_train) == ({}, {}, 40)
    assert found.train.table.features["input_ids"].feature.dtype == "int32"


def test_a_second_run_finds_the_first_ones_rows_and_says_the_same(folder, capsys):
    write(folder, "rows", 300, "{", '{"instruction": "a"}')
    first = load(folder, cutoff_len=CUT)
    said = capsys.readouterr().err
    second = load(folder, cutoff_len=CUT)
    again = capsys.readouterr().err

    assert not was_cached(first)
    assert was_cached(second)
    assert again == said.replace("(encoded,", "(from the cache,")
    assert "302 rows read, 300 kept, 2 skipped, 300 cut" in said
    assert "rows.jsonl:1:2: not JSON" in said
    assert second.train is not None
    assert second.train.table[:] == first.train.table[:]  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        {"cutoff_len": 30},
        {"mask_history": True},
        {"train_on_prompt": True},
        {"max_samples": 39},
        {"template": replace(CHATML, default_system="be kind")},
        {"tokenizer": tiny.make_tokenizer(vocab_size=390)},
        {"overwrite_cache": True},
    ],
)
def test_a_change_of_what_decides_is_never_answered_from_the_cache(folder, change):
    load(folder)

    assert not was_cached(load(folder, **change))


def test_a_changed_byte_of_the_data_is_never_answered_from_the_cache(folder):
    load(folder)
    path = folder / "rows.jsonl"
    path.write_text(path.read_text().replace("answer 39", "answer 38"))

    changed = load(folder)

    assert not was_cached(changed)
    assert changed.train is not None
    assert "answer 38" in tiny.make_tokenizer().decode(changed.train.table[39]["input_ids"])


def test_a_changed_description_is_never_answered_from_the_cache(folder):
    load(folder)
    entry = {"file_name": "rows.jsonl", "columns": {"query": "output"}}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": entry}))

    assert not was_cached(load(folder))


@pytest.mark.parametrize(
    "change", [{"preprocessing_num_workers": 2}, {"preprocessing_batch_size": 7}]
)
def test_how_it_is_computed_does_not_matter(folder, change):
    first = load(folder)

    found = load(folder, overwrite_cache=True, **{"preprocessing_batch_size": 8} | change)

    assert not was_cached(found)
    assert found.train.table[:] == first.train.table[:]  # type: ignore[index]


def test_the_split_equals_that_of_datasets_and_prompts_follow_it(folder):
    found = load(folder, dataset="rows,more", val_size=0.2, predict_with_generate=True)

    names = [f"rows.jsonl:{n}" for n in range(1, 41)] + [f"more.jsonl:{n}" for n in range(1, 11)]
    expected = datasets.Dataset.from_dict({"origin": names}).train_test_split(0.2, seed=42)
    assert found.train is not None
    assert origins(found.train) == expected["train"]["origin"][:]
    assert origins(found.eval[""]) == origins(found.predict[""]) == expected["test"]["origin"][:]
    assert {"input_ids", "labels", "origin"} <= {*found.predict[""].table.column_names}
    assert tiny.make_tokenizer().decode(found.predict[""].table[0]["labels"]).startswith("answer")


@pytest.mark.parametrize("each", [False, True])
def test_evaluation_sets_are_one_or_each_its_own(folder, each):
    found = load(
        folder, eval_dataset="rows,more", eval_on_each_dataset=each, predict_with_generate=True
    )

    sizes = {"rows": 40, "more": 10} if each else {"": 50}
    assert {name: len(one) for name, one in found.eval.items()} == sizes
    assert {name: len(one) for name, one in found.predict.items()} == sizes


def test_a_path_is_called_by_its_last_part_unless_two_are_alike(folder, tmp_path):
    (tmp_path / "other").mkdir()
    paths = [str(folder / "rows.jsonl"), str(folder / "more.jsonl")]
    twin = tmp_path / "other" / "rows.jsonl"
    twin.write_text((folder / "rows.jsonl").read_text())

    found = load(folder, eval_dataset=",".join(paths), eval_on_each_dataset=True)
    alike = load(folder, eval_dataset=f"{paths[0]},{twin}", eval_on_each_dataset=True)

    assert list(found.eval) == ["rows", "more"]
    assert list(alike.eval) == [paths[0], str(twin)]


def test_prompts_without_answers_can_be_answered_but_not_learned(folder):
    (folder / "asked.jsonl").write_text('{"instruction": "a", "output": ""}\n')

    found = load(folder, eval_dataset=str(folder / "asked.jsonl"), predict_with_generate=True)

    assert "" not in found.eval
    assert len(found.predict[""]) == 1


def test_bad_rows_within_the_budget_are_skipped(folder):
    write(folder, "rows", 40, "{", '{"instruction": "a"}', '{"instruction": "a", "output": 3}')

    found = load(folder, max_bad_rows=3)

    assert origins(found.train)[0] == "rows.jsonl:4"  # type: ignore[arg-type]
    (report,) = found.report.sets
    assert report.num_read == report.num_kept + report.num_skipped == 43
    assert list(report.skipped.values()) == [1, 1, 1]


@pytest.mark.parametrize("budget", [2, 0.05, 0])
@pytest.mark.parametrize("run", ["first", "cached"])
def test_more_bad_rows_than_the_budget_end_the_run(folder, budget, run):
    write(folder, "rows", 40, "{", '{"instruction": "a"}', '{"instruction": "a", "output": 3}')
    if run == "cached":
        load(folder, max_bad_rows=0.5)

    with pytest.raises(DataError) as raised:
        load(folder, max_bad_rows=budget)

    text = str(raised.value)
    assert "'rows': 3 of 43 rows cannot be used" in text
    for words in (
        "rows.jsonl:1:2: not JSON",
        "rows.jsonl:2, output: missing",
        "1 x output: a number",
    ):
        assert words in text


def test_rows_whose_headers_have_no_room_are_too_long_and_not_bad(folder, capsys):
    with pytest.raises(DataError, match=r"40 x longer than cutoff_len\)\. Raise cutoff_len"):
        load(folder, cutoff_len=1)
    system = {"instruction": "a", "output": "b", "system": "be kind " * 40}
    write(folder, "rows", 40, *[json.dumps(system)] * 5)
    columns = {"prompt": "instruction", "response": "output", "system": "system"}
    entry = {"rows": {"file_name": "rows.jsonl", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(entry))

    found = load(folder, cutoff_len=60, max_bad_rows=0)

    (report,) = found.report.sets
    assert (report.num_skipped, report.left_out) == (0, {"longer than cutoff_len": 5})
    assert len(found.train) == 40
    assert "5 rows are left out: their system text" in capsys.readouterr().err


def test_a_row_that_is_empty_counts_as_bad(folder):
    (folder / "rows.jsonl").write_text('{"instruction": "a", "output": ""}\n')

    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        load(folder)


def test_the_format_of_a_path_is_said(folder, capsys):
    load(folder, dataset=str(folder / "rows.jsonl"))

    assert "alpaca rows detected: prompt from 'instruction'" in capsys.readouterr().err


def test_an_empty_file_is_an_error(folder):
    (folder / "rows.jsonl").write_text("\n")

    with pytest.raises(DataError, match="there are no rows"):
        load(folder)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ranking": True}, "a chosen and a rejected answer"),
        ({"columns": {"kto_tag": "label"}}, "leave out the rows whose 'label' is false"),
    ],
)
def test_data_of_another_stage_is_refused_by_name(folder, given, words):
    entry = {"file_name": str(folder / "rows.jsonl")} | given

    with pytest.raises(DataError, match=f"'pairs'.*{words}"):
        load(folder, dataset="pairs", dataset_dir={"pairs": entry})


def test_tool_results_are_wrapped_one_by_one_where_the_template_wraps_them():
    assert find_tool_turns(TEMPLATES.get("qwen")) == ToolTurns(
        "\n</tool_response>\n<tool_response>\n", takes_text=True
    )
    assert find_tool_turns(TEMPLATES.get("llama3")) == ToolTurns("\n", takes_text=False)


def test_the_tokenizers_own_chat_template_encodes_alike(folder):
    tokenizer = tiny.make_tokenizer()
    template = choose_template(DataArguments(), tokenizer)

    found = load(
        folder, template=template, tokenizer=tokenizer, predict_with_generate=True, val_size=2
    )

    expected = load(folder, predict_with_generate=True, val_size=2)
    assert found.train.table["input_ids"][:] == expected.train.table["input_ids"][:]  # type: ignore[index]
    assert found.predict[""].table["input_ids"][:] == expected.predict[""].table["input_ids"][:]


@pytest.mark.parametrize("val_size", [0.25, 10])
def test_rows_that_are_held_out_are_not_trained_on_however_often_they_are_drawn(
    folder, val_size, capsys
):
    entry = {"rows": {"file_name": str(folder / "rows.jsonl"), "num_samples": 120}}

    found = load(folder, dataset_dir=entry, val_size=val_size, predict_with_generate=True)

    held, trained = origins(found.eval[""]), origins(found.train)  # type: ignore[arg-type]
    assert len(held) == len({*held}) == 10
    assert held == origins(found.predict[""])
    assert not {*held} & {*trained}
    assert len({*trained}) == 30 < len(trained) < 120
    assert f"10 examples are evaluated on; they were drawn {120 - len(trained)}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("names", "strategy"), [("rows,more", "interleave_over"), ("rows,rows", "concat")]
)
def test_rows_of_one_line_are_held_out_one_by_one(folder, names, strategy):
    for name in ("rows", "more"):
        file = folder / f"{name}.jsonl"
        file.write_text(f"[{','.join(file.read_text().splitlines())}]")

    found = load(folder, dataset=names, mix_strategy=strategy, val_size=0.3)

    held, trained = ({*map(str, one.table["input_ids"])} for one in (found.eval[""], found.train))
    assert not held & trained
    assert (len(held), len(trained)) == ((15, 35) if "more" in names else (12, 28))


@pytest.mark.parametrize("on_overlong", ["truncate", "split"])
@pytest.mark.parametrize(
    ("names", "strategy"),
    [("rows,more", "interleave_over"), ("rows,rows", "concat"), ("rows,twin", "concat")],
)
def test_a_row_is_held_out_of_all_sets_it_is_drawn_from(folder, names, strategy, on_overlong):
    entries = {name: {"file_name": str(folder / f"{name}.jsonl")} for name in ("rows", "more")}
    entries["twin"] = entries["rows"] | {"num_samples": 40}

    found = load(
        folder,
        dataset_dir=entries,
        dataset=names,
        mix_strategy=strategy,
        val_size=0.3,
        on_overlong=on_overlong,
    )

    held, trained = {*origins(found.eval[""])}, {*origins(found.train)}  # type: ignore[arg-type]
    assert len(held) == (15 if strategy == "interleave_over" else 12)
    assert not held & trained
    assert len(held | trained) == (50 if strategy == "interleave_over" else 40)


def _load_slowly(folder: Path, **given: Any) -> None:
    """As `load`, in small shards each of which takes a while."""
    reader.LEAST_BYTES = reader.MOST_BYTES = 200
    shards.make_shard = _make_slowly
    load(folder, **given)


def _make_slowly(encoding: Encoding, task: Any, target: Path) -> Any:
    time.sleep(0.1)
    return _MAKE(encoding, task, target)


_MAKE = shards.make_shard


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_kill_it_goes_on_behind_the_last_whole_shard(folder, workers, monkeypatch, capsys):
    context = multiprocessing.get_context("fork")
    given = {"preprocessing_num_workers": workers}
    killed = context.Process(target=_load_slowly, args=(folder,), kwargs=given)
    killed.start()
    while not any(file.stat().st_size for file in (folder / "cache").rglob("shards.jsonl")):
        time.sleep(0.01)

    os.kill(killed.pid or 0, signal.SIGKILL)
    killed.join()
    for name in ("LEAST_BYTES", "MOST_BYTES"):
        monkeypatch.setattr(reader, name, 200)
    found = load(folder, **given)

    assert "shards were encoded before and are kept" in capsys.readouterr().err
    assert origins(found.train) == [f"rows.jsonl:{n}" for n in range(1, 41)]  # type: ignore[arg-type]
    (report,) = found.report.sets
    assert (report.num_read, report.num_kept) == (40, 40)


def test_of_eight_processes_one_encodes(folder):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_load_slowly, args=(folder,)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * 8
    (journal,) = (folder / "cache").rglob("shards.jsonl")
    numbers = [json.loads(line)["number"] for line in journal.read_text().splitlines()]
    assert numbers == sorted({*numbers})  # each shard was made once


@pytest.mark.parametrize("most", [1, 7, 39, 100])
def test_the_first_rows_are_the_same_however_the_file_is_cut(folder, monkeypatch, most):
    for name in ("LEAST_BYTES", "MOST_BYTES"):
        monkeypatch.setattr(reader, name, 100)

    found = load(folder, max_samples=most, preprocessing_num_workers=2)

    assert origins(found.train) == [f"rows.jsonl:{n}" for n in range(1, min(most, 40) + 1)]  # type: ignore[arg-type]


def test_num_samples_encodes_what_it_draws_and_no_more(folder, monkeypatch):
    for name in ("LEAST_BYTES", "MOST_BYTES"):
        monkeypatch.setattr(reader, name, 100)
    entry = {"rows": {"file_name": str(folder / "rows.jsonl"), "num_samples": 5}}

    found = load(folder, dataset_dir=entry)
    fewer = load(folder, dataset_dir=entry, max_samples=3)

    (report,) = found.report.sets
    assert (report.num_in_files, report.num_drawn, report.num_read) == (40, 5, 5)
    assert len({*origins(found.train)}) == 5  # type: ignore[arg-type]
    assert origins(fewer.train) == origins(found.train)[:3]  # type: ignore[arg-type]


def test_long_rows_end_the_run_only_where_that_is_asked(folder):
    (folder / "rows.jsonl").write_text(
        json.dumps({"instruction": "a", "output": "b " * 90})
        + "\n"
        + json.dumps({"instruction": "a", "output": "b"})
    )

    with pytest.raises(DataError, match=r"1 rows are longer than cutoff_len 50, the longest has 1"):
        load(folder, cutoff_len=50, on_overlong="error")
    assert len(load(folder, cutoff_len=50, on_overlong="drop").train) == 1  # type: ignore[arg-type]
    assert len(load(folder, cutoff_len=50).train) == 2  # type: ignore[arg-type]


def test_the_parts_of_a_row_are_answered_once(folder):
    messages = []
    for n in range(6):
        messages.append({"role": "user", "content": f"question {n}"})
        messages.append({"role": "assistant", "content": f"answer {n}"})
    lines = [json.dumps({"messages": messages})] * 4
    (folder / "rows.jsonl").write_text("\n".join(lines))
    path = str(folder / "rows.jsonl")

    found = load(
        folder,
        dataset=path,
        cutoff_len=60,
        on_overlong="split",
        val_size=2,
        predict_with_generate=True,
    )

    (learned, _) = found.report.sets
    assert learned.num_kept == learned.num_parts == 4 * 3
    assert len(found.eval[""]) == len(found.train) == 2 * 3  # type: ignore[arg-type]
    assert not {*origins(found.eval[""])} & {*origins(found.train)}  # type: ignore[arg-type]
    assert len(found.predict[""]) == len({*origins(found.eval[""])}) == 2


def write_weighted(folder, name, *weights):
    rows = [
        {"instruction": f"{name} {n}", "output": "b", "weight": w} for n, w in enumerate(weights)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"file_name": str(folder / f"{name}.jsonl"), "columns": {"weight": "weight"}}


def test_weights_are_a_column_where_some_rows_of_some_data_set_have_any(folder):
    entries = {
        "a": write_weighted(folder, "a", 1, 1, 1),
        "b": write_weighted(folder, "b", 1, 0.5, 2, 0),
    }
    kept = str(folder / "kept")

    found = load(folder, dataset="a,b", dataset_dir=entries, tokenized_path=kept)
    again = load(folder, dataset="a,b", dataset_dir=entries, tokenized_path=kept)

    for train in (found.train.table, again.train.table):
        weights = {
            Path(row["origin"].rpartition(":")[0]).stem + row["origin"].rpartition(":")[2]: {
                weight
                for weight, label in zip(row["token_weight"], row["labels"], strict=True)
                if label != IGNORE_INDEX
            }
            if row["token_weight"]
            else None
            for row in train
        }
        assert weights == {"a1": None, "a2": None, "a3": None, "b1": None, "b2": {0.5}, "b3": {2}}
    assert (
        "token_weight"
        not in load(folder, dataset="a", dataset_dir=entries).train.table.column_names
    )


def test_weights_that_packing_would_lose_are_refused_by_name(folder):
    entries = {"a": write_weighted(folder, "a", 1, 1), "b": write_weighted(folder, "b", 1, 0.5)}
    with pytest.raises(DataError, match=r"'b': some rows .* with packing .* packing: false"):
        load(folder, dataset="a,b", dataset_dir=entries, packing=True)
    entries["b"]["columns"] = {}

    assert load(folder, dataset="a,b", dataset_dir=entries, packing=True).train.table


def test_rows_that_are_not_to_be_learned_are_left_out_and_counted(folder):
    rows = [{"instruction": "a", "output": "b", "train": bool(n % 2)} for n in range(10)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = {"rows": {"file_name": str(folder / "rows.jsonl"), "columns": {"train": "train"}}}

    found = load(folder, dataset_dir=entry, max_bad_rows=0)

    assert len(load(folder).train) == 10  # type: ignore[arg-type]
    assert len(found.train) == 5  # type: ignore[arg-type]
    assert sum(found.report.sets[0].left_out.values()) == 5


def test_the_report_says_what_the_conversations_hold_from_the_cache_too(folder):
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "output": "b", "system": "S"},
        {"instruction": "a", "output": "b", "history": [["c", "d"]]},
        {"instruction": "a", "output": ""},
    ]
    (folder / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = {"file_name": "more.jsonl", "columns": {"system": "system", "history": "history"}}
    entry["columns"] |= {"prompt": "instruction", "response": "output"}
    (folder / "dataset_info.json").write_text(json.dumps({"more": entry}))

    for _ in range(2):
        found = load(folder, dataset="more", max_bad_rows=1)

        assert found.report.sets[0].kinds == {"": 1, "a system text": 1, "several turns": 1}
        assert found.report.kinds() == {"", "a system text", "several turns"}
    assert was_cached(found)
