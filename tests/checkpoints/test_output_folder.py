"""what is in a folder: an old run gives way whole, a restarted rank does not move its own"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luthier.checkpoints import lock
from luthier.checkpoints.lock import OutputLock, holder
from luthier.checkpoints.output_folder import OutputFolder
from luthier.checkpoints.verify import newest_valid
from luthier.errors import CheckpointError
from tests.checkpoints import made
from tests.checkpoints.made import arguments


def beside(folder: Path) -> list[Path]:
    return [path for path in folder.parent.iterdir() if ".old-" in path.name]


def test_overwriting_moves_the_whole_old_run_beside_the_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    made.checkpoint(folder, 3)
    (folder / "notes.txt").write_text("mine")

    with OutputFolder(arguments(folder, overwrite_output_dir=True)).claimed():
        assert holder(folder) is not None
        assert [path.name for path in folder.iterdir()] == [".lock"]

    (old,) = beside(folder)
    assert newest_valid(old) == old / "checkpoint-3"
    assert (old / "notes.txt").read_text() == "mine"
    assert not (old / ".lock").exists()
    assert str(old) in capsys.readouterr().err
    assert holder(folder) is None


def test_a_folder_of_something_else_is_not_moved(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")

    with OutputFolder(arguments(folder, overwrite_output_dir=True)).claimed():
        assert (folder / "notes.txt").exists()

    assert beside(folder) == []


def test_an_elastic_restart_keeps_what_its_own_launch_has_made(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    made.checkpoint(folder, 3)
    asked = arguments(folder, overwrite_output_dir=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")

    def note_stays(self: OutputLock) -> None:  # as a rank that is killed leaves it
        lock._held.discard(self._descriptor)
        os.close(self._descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(OutputLock, "release", note_stays)
        with OutputFolder(asked).claimed():
            made.checkpoint(folder, 1)
    assert len(beside(folder)) == 1

    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with OutputFolder(asked).claimed():
        assert newest_valid(folder) == folder / "checkpoint-1"
    assert len(beside(folder)) == 1


def test_what_a_killed_run_left_goes_once_the_folder_is_ours(tmp_path, capsys):
    made.stage(tmp_path, 4)

    with OutputFolder(arguments(tmp_path)).claimed():
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]

    assert ".stage-checkpoint-4" in capsys.readouterr().err


def test_a_folder_in_use_is_refused_before_and_when_it_is_taken(tmp_path):
    with OutputFolder(arguments(tmp_path)).claimed():
        assert "in use" in next(OutputFolder(arguments(tmp_path)).problems())
        with (
            pytest.raises(CheckpointError, match="in use"),
            OutputFolder(arguments(tmp_path)).claimed(),
        ):
            pass


@pytest.mark.parametrize("inside", ["cwd", "model_name_or_path", "dataset_dir"])
def test_what_the_run_reads_is_not_moved_away_under_it(tmp_path, monkeypatch, inside):
    folder = tmp_path / "run"
    checkpoint = made.checkpoint(folder, 3)
    values = {} if inside == "cwd" else {inside: str(checkpoint)}
    if inside == "cwd":
        monkeypatch.chdir(checkpoint)

    asked = arguments(folder, overwrite_output_dir=True, **values)
    problems = list(OutputFolder(asked).problems())

    assert len(problems) == 1
    assert "moved aside" in problems[0]


def test_other_ranks_share_the_lock_of_the_first(tmp_path, monkeypatch):
    with OutputFolder(arguments(tmp_path)).claimed():
        for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        with OutputFolder(arguments(tmp_path)).claimed():
            pass
        assert holder(tmp_path) is not None
