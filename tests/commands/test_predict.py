"""what a run trained answers rows, killed and started again, by the words of a user"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier import cli
from luthier.commands import predict
from luthier.errors import ArgumentsError
from tests.stages.made import short_run

SHORT = ("max_new_tokens=6", "do_sample=false")


@pytest.fixture(scope="module")
def config(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("predict")
    rows = folder / "rows.json"
    rows.write_text(
        json.dumps([{"instruction": f"what is {n}?", "output": f"it is {n}"} for n in range(30)])
    )
    settings = {"learning_rate": 0.05, "val_size": 5, "metric": "no_such_module:code"}
    config = short_run(llama_folder, folder, "sft", rows, **settings)
    luthier.train({name: value for name, value in config.items() if name != "metric"})
    record = folder / "run" / "run.json"
    changed = json.loads(record.read_text())
    changed["arguments"]["metric"] = "no_such_module:code"  # a stranger's folder names code
    record.write_text(json.dumps(changed))
    return config


def predictions(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "generated_predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_runs_folder_answers_what_it_held_out_and_stays_as_it_was(config: dict[str, Any]) -> None:
    run = Path(config["output_dir"])
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}

    cli.main(["predict", str(run), *SHORT])

    rows = predictions(run / "predictions")
    assert len(rows) == 5
    assert all(row["label"].startswith("it is") and "what is" in row["prompt"] for row in rows)
    assert before == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    scores = json.loads((run / "predictions" / "predict_results.json").read_text())
    assert scores["predict_exact_match"] == 0


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "what is 3?"}]},
        {"prompt": "what is 3?"},
        {"instruction": "what is 3?", "output": "it is 3"},
    ],
)
def test_rows_of_each_form_are_answered_up_to_a_limit(
    row: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
    words = [f"eval_dataset={file}", f"output_dir={tmp_path / 'out'}", "--limit", "3"]

    cli.main(["predict", config["output_dir"], *words, *SHORT])

    rows = predictions(tmp_path / "out")
    assert len(rows) == 3
    assert all("what is 3?" in each["prompt"] for each in rows)


def test_a_configuration_that_trains_stands_for_what_it_trained(
    config: dict[str, Any], tmp_path: Path
) -> None:
    own = {name: value for name, value in config.items() if name not in ("metric", "val_size")}
    file = tmp_path / "train.json"
    file.write_text(json.dumps(own))
    where = f"output_dir={tmp_path / 'out'}"

    cli.main(["predict", str(file), where, "num_return_sequences=2", "do_sample=true", SHORT[0]])

    rows = predictions(tmp_path / "out")
    assert [len(row["predict"]) for row in rows] == [2] * 5
    file.write_text(json.dumps(own | {"output_dir": str(tmp_path / "nothing")}))
    with pytest.raises(ArgumentsError, match="holds nothing yet"):
        predict.run([str(file)])


def test_a_metric_is_taken_from_the_users_own_words(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scores_of_mine.py").write_text("def rows(predictions, labels): return len(labels)")

    run = os.path.relpath(config["output_dir"])
    cli.main(["predict", run, "metric=scores_of_mine:rows", "output_dir=out", *SHORT])

    scores = json.loads(Path("out/predict_results.json").read_text())
    assert scores["predict_rows"] == 5


def test_a_killed_prediction_goes_on_and_is_bit_equal(
    config: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"what is {n}?"}) + "\n" for n in range(24)))
    words = [config["output_dir"], f"eval_dataset={file}", "max_new_tokens=120", "do_sample=true"]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier", "predict", *words, f"output_dir={killed}"],
        stderr=subprocess.PIPE,
    )
    while process.poll() is None:
        journals = [*killed.glob("*.journal-0.jsonl")]
        if journals and journals[0].read_bytes().count(b"\n") > 5:
            process.kill()
        time.sleep(0.005)
    process.communicate()
    (journal,) = killed.glob("*.journal-0.jsonl")
    assert 5 < journal.read_bytes().count(b"\n") <= 24, "it was killed in the middle"

    for folder in (killed, tmp_path / "whole"):
        cli.main(["predict", *words, f"output_dir={folder}"])

    name = "generated_predictions.jsonl"
    assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not [*killed.glob("*.journal-*")]
