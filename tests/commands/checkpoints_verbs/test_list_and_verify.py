"""`luthier checkpoints` says which checkpoints are good, without torch"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from luthier.cli import main
from tests.checkpoints import made


@pytest.fixture
def run(tmp_path):
    made.checkpoint(tmp_path, 2)
    newest = made.checkpoint(tmp_path, 10, loss=None)
    content = bytearray((newest / "optimizer.pt").read_bytes())
    content[7] ^= 1
    (newest / "optimizer.pt").write_bytes(content)
    return tmp_path


def test_listing_shows_step_size_time_and_loss(run, capsys):
    assert main(["checkpoints", "list", str(run)]) == 0

    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [
        "checkpoint-2",
        "2",
        "0.0",
        "MiB",
        "2026-01-01T00:00:00Z",
        "2.5000",
        "ok",
    ]
    assert second.split()[-1] == "ok"


def test_verifying_reads_the_files_and_names_the_bad_one(run, capsys):
    assert main(["checkpoints", "verify", str(run)]) == 1

    _, first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("ok")
    assert second.endswith("bad: optimizer.pt has changed since it was written")
    assert main(["checkpoints", "verify", str(run / "checkpoint-2")]) == 0


def test_sizes_alone_show_what_is_cut_off(run, capsys):
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"")

    assert main(["checkpoints", "list", str(run), "--json"]) == 1

    first, second = json.loads(capsys.readouterr().out)
    assert first["problems"][0]["file"] == "optimizer.pt"
    assert (second["problems"], second["step"], second["loss"]) == ([], 10, None)


@pytest.mark.parametrize("words", [[], ["a", "b"], ["nowhere"]])
def test_a_folder_is_needed(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert main(["checkpoints", "list", *words]) == 2
    assert "folder" in capsys.readouterr().err


def test_torch_is_not_imported(run):
    code = (
        "import sys; from luthier.cli import main; main(['checkpoints', 'verify', sys.argv[1]]);"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, capture_output=True)
