"""what is in a folder: an old run gives way whole, a restarted rank does not move its own"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.checkpoints import lock
from luthier.checkpoints.files import list_checkpoints
from luthier.checkpoints.fingerprint import fingerprint_run
from luthier.checkpoints.lock import OutputLock, holder
from luthier.checkpoints.output_folder import OutputFolder
from luthier.checkpoints.verify import newest_valid
from luthier.distributed.whole import Whole
from luthier.errors import ArgumentsError, CheckpointError, NoValidCheckpoint
from tests.checkpoints import made
from tests.checkpoints.made import arguments


def beside(folder: Path) -> list[Path]:
    return [path for path in folder.parent.iterdir() if ".old-" in path.name]


def test_overwriting_moves_the_whole_old_run_beside_the_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    made.checkpoint(folder, 3)
    (folder / "notes.txt").write_text("mine")

    with OutputFolder(arguments(folder, overwrite_output_dir=True)).locked():
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

    with OutputFolder(arguments(folder, overwrite_output_dir=True)).locked():
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
        with OutputFolder(asked).locked():
            made.checkpoint(folder, 1)
    assert len(beside(folder)) == 1

    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with OutputFolder(asked).locked():
        assert newest_valid(folder) == folder / "checkpoint-1"
    assert len(beside(folder)) == 1


def test_what_a_killed_run_left_goes_once_the_folder_is_ours(tmp_path, capsys):
    made.stage(tmp_path, 4)

    with OutputFolder(arguments(tmp_path)).locked():
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]

    assert ".stage-checkpoint-4" in capsys.readouterr().err


def test_a_folder_in_use_is_refused_before_and_when_it_is_taken(tmp_path):
    with OutputFolder(arguments(tmp_path)).locked():
        assert "in use" in next(OutputFolder(arguments(tmp_path)).problems())
        with (
            pytest.raises(CheckpointError, match="in use"),
            OutputFolder(arguments(tmp_path)).locked(),
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
    with OutputFolder(arguments(tmp_path)).locked():
        for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        with OutputFolder(arguments(tmp_path)).locked():
            pass
        assert holder(tmp_path) is not None


# the newest good checkpoint is taken, a damaged one that was named is not replaced


@pytest.fixture
def run(tmp_path):
    """Checkpoints 2, 4 and 10; the last has lost a byte and the optimizer."""
    for step in (2, 4, 10):
        made.checkpoint(tmp_path, step)
    damaged = tmp_path / "checkpoint-10"
    (damaged / "optimizer.pt").unlink()
    (damaged / "rng_state.pth").write_bytes(made.FILES["rng_state.pth"][:-1] + b"!")
    return tmp_path


@pytest.mark.parametrize("word", ["auto", None, True, "true", "AUTO"])
def test_the_newest_good_one_is_taken_and_what_is_wrong_with_newer_ones_said(run, word, capsys):
    found = OutputFolder(arguments(run, resume_from_checkpoint=word)).choose_checkpoint()

    said = capsys.readouterr().err
    assert found == run / "checkpoint-4"
    assert "checkpoint-10 is left out" in said
    assert "optimizer.pt is missing" in said
    assert "rng_state.pth has changed" in said


def test_one_that_is_named_is_taken_and_no_other_for_it(run):
    asked = arguments(run, resume_from_checkpoint=str(run / "checkpoint-2"))
    assert OutputFolder(asked).choose_checkpoint() == run / "checkpoint-2"

    with pytest.raises(NoValidCheckpoint, match=r"optimizer\.pt is missing.*No other is taken"):
        OutputFolder(
            arguments(run, resume_from_checkpoint=str(run / "checkpoint-10"))
        ).choose_checkpoint()


def test_all_damaged_ends_with_a_code_of_its_own_and_names_each(run):
    for step in (2, 4):
        (run / f"checkpoint-{step}" / "MANIFEST.json").write_bytes(b"")

    with pytest.raises(NoValidCheckpoint) as caught:
        list(OutputFolder(arguments(run)).checkpoint_problems())

    assert caught.value.exit_code == 3
    assert all(f"checkpoint-{step}" in str(caught.value) for step in (2, 4, 10))


def test_words_that_contradict_the_folder_end_the_run(run, tmp_path_factory):
    with pytest.raises(CheckpointError, match="overwrite_output_dir"):
        OutputFolder(arguments(run, resume_from_checkpoint=False)).choose_checkpoint()
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        OutputFolder(arguments(empty, resume_from_checkpoint=True)).choose_checkpoint()
    assert OutputFolder(arguments(empty, resume_from_checkpoint=False)).choose_checkpoint() is None
    assert OutputFolder(arguments(empty)).choose_checkpoint() is None


def test_a_run_that_starts_anew_goes_on_from_nothing(run):
    assert OutputFolder(arguments(run, overwrite_output_dir=True)).choose_checkpoint() is None


def test_a_path_that_is_no_checkpoint_is_refused_at_once(tmp_path):
    wrong = arguments(tmp_path, resume_from_checkpoint=str(tmp_path / "nowhere"))

    assert "is no checkpoint" in next(OutputFolder(wrong).problems())


def test_going_on_from_an_earlier_one_leaves_the_later_ones_behind(run, capsys):
    asked = arguments(run, resume_from_checkpoint=str(run / "checkpoint-2"))
    now = fingerprint_run(asked, Whole("single"), 1)

    with pytest.raises(ArgumentsError, match="examples of a step: 4 then, 8 now"):
        OutputFolder(asked).resume(now)
    assert len(list_checkpoints(run)) == 3
    checkpoint, found = OutputFolder(asked).resume(replace(now, examples_per_step=4))

    assert checkpoint == run / "checkpoint-2"
    assert found.run_id == made.manifest(2).run_id
    assert list_checkpoints(run) == [checkpoint]
    assert len(list(run.glob("checkpoint-*.old-*"))) == 2
