"""an export is whole or not there, overwrites nothing and tells nothing"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from luthier.checkpoints.verify import verify
from luthier.errors import CheckpointError, SaveError
from luthier.exporting import place
from luthier.exporting.run import export
from tests.checkpoints.made import manifest
from tests.exporting.making import arguments_for, export_of, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", llama_folder)


def test_a_folder_with_files_is_left_alone(tmp_path: Path, run: Path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "model-00001-of-00009.safetensors").write_bytes(b"of another model")

    with pytest.raises(CheckpointError, match=r"not empty \(model-00001-of-00009.safetensors\)"):
        export_of(run, target)

    assert [path.name for path in tmp_path.rglob("*")] == ["out", next(target.iterdir()).name]


def test_links_and_files_are_refused_and_an_empty_folder_is_taken(tmp_path: Path, run: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointError, match="symbolic link"):
        export_of(run, tmp_path / "link")
    with pytest.raises(CheckpointError, match="is a file"):
        export_of(run, tmp_path / "file")
    folder = export_of(run, tmp_path / "real")

    assert not verify(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "real"]


def test_a_disk_that_is_too_small_is_told_first(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    def look(folder: Path, needed: int) -> None:
        checked(folder, needed + 2**60)

    checked = place.check_space
    monkeypatch.setattr(place, "check_space", look)

    with pytest.raises(SaveError, match="are needed") as caught:
        export_of(run, tmp_path / "new" / "out")

    assert caught.value.exit_code == 28
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, run: Path):
    (tmp_path / "file").write_text("")

    with pytest.raises(SaveError, match="cannot be written"):
        export_of(run, tmp_path / "file" / "out")


def test_who_is_killed_leaves_all_or_nothing(tmp_path: Path, run: Path):
    target = tmp_path / "out"
    arguments = arguments_for(run, target)
    fork = multiprocessing.get_context("fork")
    began = time.monotonic()
    export(arguments_for(run, tmp_path / "first"))
    took = time.monotonic() - began

    for share in (0.2, 0.5, 0.8, 0.95, 1.1):
        child = fork.Process(target=export, args=(arguments,))
        child.start()
        child.join(took * share)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        if target.exists():
            assert not verify(target)
            place.delete(target)

    folder = export(arguments)
    assert not verify(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "out"]


def test_an_export_that_still_runs_keeps_its_stage(tmp_path: Path):
    with place.staged(tmp_path / "out", 0, manifest(0)) as other:
        (other / "weights").write_text("theirs")
        with place.staged(tmp_path / "out", 0, manifest(0)) as ours:
            assert other.exists()
            assert other != ours
            (ours / "weights").write_text("ours")
        place.delete(tmp_path / "out")

    assert (tmp_path / "out" / "weights").read_text() == "theirs"


def test_secrets_stay_here(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    canary = "canary-4f1c8a72"
    monkeypatch.setenv("WANDB_API_KEY", canary)
    (run / "README.md").write_text(f"---\ntags:\n- luthier\n---\n# run\n\n{canary} is no secret\n")

    pytest.importorskip("gguf", reason="the extra luthier[gguf] is not installed")

    rows = [{"instruction": f"Who is {canary}?", "output": canary} for _ in range(9)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    given = {"hf_hub_token": canary, "gguf": "f16", "ollama": True}
    given |= {"dataset": str(tmp_path / "rows.json")}
    folder = export_of(run, tmp_path / "out", **given)

    said = "".join(capfd.readouterr())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert f"proof: 8 prompts of {tmp_path / 'rows.json'}" in said
    assert canary not in said
    assert not [path for path in files if canary.encode() in path.read_bytes()]
    (run / "README.md").unlink()
