from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier import cli


@pytest.fixture
def config(tmp_path: Path, llama_folder: Path) -> Path:
    rows = [{"instruction": f"question {n}", "output": f"answer {n}"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model_name_or_path: {llama_folder}\ntemplate: chatml\ndataset: {tmp_path}/rows.jsonl\n"
        f"do_train: true\noutput_dir: {tmp_path}/out\ncache_dir: {tmp_path}/cache\nval_size: 0.1\n"
    )
    return file


def prepare(*words: object) -> int:
    return cli.main(["data", "prepare", *map(str, words)])


def test_it_says_where_the_data_is_and_the_run_finds_it_there(config, capsys):
    assert prepare(config) == 0
    first = capsys.readouterr()
    assert prepare(config) == 0
    second = capsys.readouterr()

    (folder,) = first.out.splitlines()
    assert (Path(folder) / "manifest.json").is_file()
    assert second.out == first.out
    assert "(encoded," in first.err
    assert "(from the cache," in second.err
    assert "18 rows to train on, 2 to evaluate on" in first.err
    assert "holds 1 data sets" in first.err
    assert not (config.parent / "out").exists()


def test_cleaning_keeps_what_the_configuration_uses(config, capsys):
    prepare(config, "cutoff_len=100")
    prepare(config)
    assert "holds 2 data sets" in capsys.readouterr().err

    assert prepare(config, "--clean") == 0

    said = capsys.readouterr()
    assert "1 data sets of" in said.err
    assert Path(said.out.strip()).is_dir()


def test_cleaning_alone_empties_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert prepare("--clean") == 0

    assert "holds 0 data sets" in capsys.readouterr().err


def test_tokenized_path_is_named(config, tmp_path, capsys):
    assert prepare(config, f"tokenized_path={tmp_path}/kept") == 0

    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/kept"


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "what to encode"), (["dataset=identity"], "model_name_or_path is missing")],
)
def test_what_is_missing_is_said(words, said, capsys):
    assert prepare(*words) == 2
    assert said in capsys.readouterr().err
