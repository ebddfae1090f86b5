"""`luthier tokenizer train` from the command line"""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.cli import main
from tests import tiny


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(tiny.CORPUS))
    return file


def test_a_tokenizer_is_written_and_works(corpus: Path, tmp_path: Path, capsys):
    output = tmp_path / "made"

    code = main(["tokenizer", "train", str(corpus), "--vocab_size", "300", "--output", str(output)])

    tokenizer = tiny.PreTrainedTokenizerFast.from_pretrained(output)
    assert code == 0
    assert len(tokenizer) == 300
    said = " ".join(capsys.readouterr().err.split())
    assert f"{corpus}: 4 texts of 4 rows" in said
    assert "put a model's config.json beside it" in said


def test_a_small_corpus_is_said_to_be_small(corpus: Path, tmp_path: Path, capsys):
    words = ["--vocab-size=9999", f"--output={tmp_path / 'made'}"]

    assert main(["tokenizer", "train", str(corpus), *words]) == 0

    assert "the texts have no more than" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs texts to learn from"),
        (["--output", "made"], "no file to learn from"),
        (["FILE"], "--output FOLDER is missing"),
        (["FILE", "--output", "made", "--vocab_size", "12"], "need 260"),
        (["FILE", "--output", "made", "--vocab_size", "many"], "invalid int value"),
        (["nothing.txt", "--output", "made"], "there is no such file"),
        (["FILE", "--output", "FOLDER"], "holds a tokenizer already"),
    ],
)
def test_what_cannot_be_done_is_said(words, message, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "tokenizer.json").touch()
    names = {"FILE": str(corpus), "FOLDER": "there"}

    code = main(["tokenizer", "train", *(names.get(word, word) for word in words)])

    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "made").exists()


def test_the_command_explains_itself(capsys):
    assert main(["tokenizer"]) == 0
    assert "train" in capsys.readouterr().out
    assert main(["tokenizer", "train", "--help"]) == 0
    assert "--vocab_size N" in capsys.readouterr().out
