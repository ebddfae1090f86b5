from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import cli
from tests.inspecting.damage import write_damaged

HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate"}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"instruction": f"question {number}", "output": f"answer {number}"})
            for number in range(50)
        )
    )
    return file


@pytest.fixture
def config(tmp_path: Path, rows: Path, llama_folder: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model_name_or_path: {llama_folder}\ntemplate: chatml\ndo_train: true\n"
        f"dataset: {rows}\noutput_dir: out\nval_size: 0.1\n"
    )
    return file


def check(*words: object) -> int:
    return cli.main(["data", "check", *map(str, words)])


def test_good_rows_end_with_0_and_bad_ones_with_1(rows, capsys):
    assert check(rows) == 0
    assert "0 errors" in capsys.readouterr().out

    rows.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c"}\n')
    assert check(rows) == 1

    shown = capsys.readouterr().out
    assert f"{rows}:2" in shown
    assert "output: missing" in shown


def test_a_configuration_counts_tokens(config, capsys):
    assert check(config, "cutoff_len=25") == 0

    shown = capsys.readouterr().out
    assert "50 x longer than cutoff_len" in shown
    assert "recommended: cutoff_len" in shown


def test_files_stand_in_place_of_the_configurations_data(config, tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"instruction": "a", "output": "b"}]))

    assert check(config, other) == 0

    shown = capsys.readouterr().out
    assert "other.json" in shown
    assert "1 rows" in shown
    assert "rows.jsonl" not in shown
    assert "cutoff_len 2,048: every row is whole" in shown


def test_a_json_configuration_is_told_from_data(rows, tmp_path, capsys):
    config = tmp_path / "run.json"
    config.write_text(json.dumps({"dataset": str(rows), "stage": "sft"}))

    assert check(config) == 0

    assert "50 rows" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_every_kind_of_damage_ends_in_a_list_of_places(tmp_path, name, capsys):
    entry = {"file_name": name, "formatting": "openai", "columns": {"tools": "tools"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    places = write_damaged(tmp_path / name, 2000)

    code = check("mine", f"dataset_dir={tmp_path}", "--all", "--json")
    document = json.loads(capsys.readouterr().out)

    assert code == 1
    untold = {"a special token", "longer than cutoff_len"}  # they ask for a tokenizer
    wanted = {line for line, damage in places.items() if damage.kind not in untold}
    assert {finding["line"] for finding in document["findings"]} == wanted
    assert document["errors"] == sum(damage.is_error for damage in places.values())


def test_what_is_shown_of_a_kind_is_limited(rows, capsys):
    rows.write_text('{"instruction": "a", "output": ""}\n' * 30)

    check(rows)
    few = capsys.readouterr().out
    check(rows, "--all")
    many = capsys.readouterr().out

    assert few.count(f"{rows}:") == 5
    assert "and 25 more" in few
    assert many.count(f"{rows}:") == 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "what to look at"),
        (["nothing.jsonl"], "no such file"),
        (["identiti"], "Did you mean 'identity'"),
        (["--josn", "identity"], "--josn"),
        (["identity", "template=qwne"], "qwne"),
        (["identity", "model_name_or_path=./nowhere"], "nowhere"),
    ],
)
def test_wrong_words_are_answered_before_anything_is_read(words, said, capsys):
    assert check(*words) == 2

    assert said in capsys.readouterr().err


def test_help_and_files_are_light(rows):
    for words in (["data"], ["data", "check", "--help"], ["data", "check", str(rows)]):
        code = (
            f"import sys; from luthier.cli import main; main({words!r}); "
            f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        assert done.stderr.strip() == "[]", done.stderr
        assert done.stdout


def test_an_unknown_verb_is_answered_with_the_nearest(capsys):
    assert cli.main(["data", "chek"]) == 2
    assert "'check'" in capsys.readouterr().err
