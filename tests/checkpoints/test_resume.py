"""the newest good checkpoint is taken, a damaged one that was named is not replaced"""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.checkpoints.fingerprint import fingerprint_run
from luthier.checkpoints.folders import list_checkpoints
from luthier.checkpoints.output_folder import OutputFolder
from luthier.distributed.whole import Whole
from luthier.errors import ArgumentsError, CheckpointError, NoValidCheckpoint
from tests.checkpoints import made
from tests.checkpoints.made import arguments


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
