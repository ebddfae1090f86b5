from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier import cli


@pytest.fixture
def config(tmp_path: Path, llama_folder: Path) -> Path:
    rows = [{"instruction": f"question {n}", "output": f"answer {n}"} for n in range(1, 21)]
    (tmp_path / "rows.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model_name_or_path: {llama_folder}\ntemplate: chatml\n"
        f"dataset: {tmp_path / 'rows.json'}\ndo_train: true\noutput_dir: out\n"
    )
    return file


def show(*words: object) -> int:
    return cli.main(["data", "show", *map(str, words)])


def test_the_first_rows_are_shown_without_colours_in_a_pipe(config, capsys):
    assert show(config) == 0

    shown = capsys.readouterr().out
    assert shown.count("===") == 3
    assert "\x1b" not in shown
    assert "⟦" in shown
    assert "<|im_start|>" in shown
    assert "'question" not in shown.partition("conversation")[0]


def test_rows_are_chosen_by_number_place_and_chance(config, capsys):
    assert show(config, "-n", 1) == 0
    assert capsys.readouterr().out.count("===") == 1

    assert show(config, "--row", "rows.json:12", "--row", "rows.json:5") == 0
    shown = capsys.readouterr().out
    assert shown.index("answer 11") < shown.index("answer 4")

    assert show(config, "--seed", 3, "-n", 2) == 0
    first = capsys.readouterr().out
    assert show(config, "--seed", 3, "-n", 2) == 0
    assert capsys.readouterr().out == first


def test_a_page_is_written(config, tmp_path, capsys):
    assert show(config, "--html", tmp_path / "rows.html", "cutoff_len=25") == 0

    assert "3 rows" in capsys.readouterr().out
    html = (tmp_path / "rows.html").read_text(encoding="utf-8")
    assert html.count("<h2>") == 3
    assert 'class="t cut"' in html


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "what to show"),
        (["identity"], "needs a tokenizer"),
        (["-n", "0", "identity"], "-n is 0"),
        (["-n", "three", "identity"], "invalid int"),
        (["--row", "rows.json:99"], "no row"),
        (["--html", "nowhere/rows.html"], "cannot be written"),
        (["--colour"], "--colour"),
    ],
)
def test_wrong_words_are_answered(config, words, said, capsys):
    given = [config, *words] if words and words[0] in ("--row", "--html", "--colour") else words

    assert show(*given) == 2

    assert said in capsys.readouterr().err
