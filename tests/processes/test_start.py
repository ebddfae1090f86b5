"""the command that starts its own processes, as a user types it"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from luthier import cli
from luthier.processes.launcher import with_args_file
from tests import tiny
from tests.launched import run_command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a folder with blanks")
    tiny.save(folder / "tiny llama", tiny.make_llama())
    rows = [{"instruction": f"Count to {n}.", "output": str(n)} for n in range(12)]
    (folder / "my rows.json").write_text(json.dumps(rows))
    (folder / "my run.yaml").write_text(
        "\n".join(
            [
                "model_name_or_path: ./tiny llama",
                "dataset: ./my rows.json",
                "template: chatml",
                "do_train: true",
                "cutoff_len: 64",
                "output_dir: ./$HOME run",
                "per_device_train_batch_size: 2",
                "max_steps: 2",
                "logging_steps: 1",
                "report_to: none",
                "use_cpu: true",
                "nproc: 3",
            ]
        )
    )
    return folder


def test_a_mistake_is_told_once_and_before_any_process_starts(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)

    code = cli.main(["train", "my run.yaml", "--nproc", "2", "--learning_rat", "3"])

    assert code == 2
    said = capsys.readouterr().err
    assert said.count("--learning_rat") == 2  # what was found, and --learning_rate
    assert "starting" not in said


def test_words_of_the_scripts_own_file_come_before_those_given(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py")])
    assert with_args_file(["a.yaml"]) == ["a.yaml"]

    (tmp_path / "script.args").write_text("--seed 7\n--nproc 2")

    assert with_args_file(["a.yaml"]) == ["--seed", "7", "--nproc", "2", "a.yaml"]


@pytest.mark.slow
def test_one_command_makes_one_run_of_two_processes(folder):
    words = [sys.executable, "-m", "luthier", "train", "my run.yaml", "--nproc", "2"]

    ended = run_command(words, folder=folder)

    assert ended.exit_code == 0, ended.stderr
    assert "starting 2 processes" in ended.stderr
    assert ended.stderr.count("2 processes, cpu each, joined by gloo") == 1
    assert ended.stderr.count("step 2/2 | loss") == 1
    assert "2 steps of 4 rows" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "destroy_process_group" not in ended.stderr
    out = folder / "$HOME run"
    log = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["current_steps"] for line in log if "loss" in line] == [1, 2]
    assert json.loads((out / "run.json").read_text())["arguments"]["nproc"] == 2
