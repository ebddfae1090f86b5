"""a checkpoint appears in one move, and old ones go in one"""

from __future__ import annotations

import os

import pytest

from luthier.checkpoints.files import list_checkpoints, stage_folder, sweep
from luthier.checkpoints.publish import finished_model, publish, replace_model, rotate
from luthier.checkpoints.verify import newest_valid, verify
from tests.checkpoints import made


def test_one_rename_gives_a_stage_its_name(tmp_path, monkeypatch):
    stage, moves = made.stage(tmp_path, 3), []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda *paths: [moves.append(paths), rename(*paths)])

    publish(stage, tmp_path / "checkpoint-3", made.manifest(3))

    assert moves == [(stage, tmp_path / "checkpoint-3")]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_damaged_checkpoint_of_the_same_step_gives_way(tmp_path):
    folder = made.checkpoint(tmp_path, 3)
    (folder / "optimizer.pt").write_bytes(b"")

    made.checkpoint(tmp_path, 3)

    assert verify(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_every_file_and_folder_is_synced_before_the_name_is_given(tmp_path, monkeypatch):
    stage, done = made.stage(tmp_path, 3), []
    sync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", lambda *paths: [done.append("rename"), rename(*paths)])
    publish(stage, tmp_path / "checkpoint-3", made.manifest(3))

    before, after = done[: done.index("rename")], done[done.index("rename") + 1 :]
    assert {str(stage), *(str(stage / name) for name in made.FILES)} <= set(before)
    assert {str(stage / "global_step3"), str(stage / "global_step3" / "deep")} <= set(before)
    assert after == [str(tmp_path)]


def test_the_oldest_go_by_step_and_not_by_age(tmp_path):
    for step in (20, 3, 100):
        made.checkpoint(tmp_path, step)

    rotate(tmp_path, 2, tmp_path / "checkpoint-100", [])

    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


def test_the_last_good_one_and_the_best_stay_whatever_the_limit(tmp_path):
    for step in (1, 2, 3, 4):
        made.checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    good = newest_valid(tmp_path)

    rotate(tmp_path, 1, good, [tmp_path / "checkpoint-1"])

    assert good == tmp_path / "checkpoint-3"
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-1", good]


def test_damaged_ones_of_later_steps_go_before_good_ones(tmp_path):
    for step in (2, 4, 6, 20):
        made.checkpoint(tmp_path, step)

    rotate(tmp_path, 3, tmp_path / "checkpoint-6", [])

    assert [path.name for path in list_checkpoints(tmp_path)] == [
        f"checkpoint-{step}" for step in (2, 4, 6)
    ]


def test_without_a_limit_all_stay(tmp_path):
    made.checkpoint(tmp_path, 1)

    rotate(tmp_path, None, None, [])

    assert len(list_checkpoints(tmp_path)) == 1


def test_what_a_killed_run_left_is_swept_and_nothing_else(tmp_path):
    kept = made.checkpoint(tmp_path, 1)
    for name in (".stage-mine", "stage-checkpoint-2-abc", ".cache"):
        (tmp_path / name).mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".trash-checkpoint-9-abcdef").symlink_to(elsewhere)
    made.stage(tmp_path, 2)
    stage_folder(tmp_path, "final", "abcdef0123456789").mkdir()
    (tmp_path / ".trash-checkpoint-8-00ff").mkdir()

    swept = sweep(tmp_path)

    assert len(swept) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".cache",
        ".stage-mine",
        ".trash-checkpoint-9-abcdef",
        kept.name,
        "elsewhere",
        "stage-checkpoint-2-abc",
    ]


def test_a_stage_that_cannot_be_read_is_not_published(tmp_path, monkeypatch):
    stage = made.stage(tmp_path, 3)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        publish(stage, tmp_path / "checkpoint-3", made.manifest(3))

    assert list_checkpoints(tmp_path) == []


# a folder never says that it is finished with half a model


def staged(folder, content: bytes):
    stage = folder / ".stage-final-a1b2"
    stage.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"):
        (stage / name).write_bytes(content)
    return stage


def test_the_model_is_moved_in_and_the_folder_says_it_is_finished(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"of another model")

    replace_model(staged(tmp_path, b"new"), tmp_path, made.manifest(10, end="steps"))

    assert finished_model(tmp_path).step == 10
    assert verify(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "MANIFEST.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    ]


def test_whoever_is_cut_off_on_the_way_is_not_finished(tmp_path, monkeypatch):
    replace_model(staged(tmp_path, b"old"), tmp_path, made.manifest(5, end="steps"))
    move, moved = os.replace, []
    num_moves = 4

    for cut in range(num_moves):
        stage = staged(tmp_path, b"new")

        def cut_off(source, target, cut=cut):
            if len(moved) == cut:
                raise KeyboardInterrupt
            moved.append(target.name)
            move(source, target)

        moved.clear()
        monkeypatch.setattr(os, "replace", cut_off)
        with pytest.raises(KeyboardInterrupt):
            replace_model(stage, tmp_path, made.manifest(10, end="steps"))
        monkeypatch.undo()

        assert finished_model(tmp_path) is None
        assert "MANIFEST.json" not in moved
        if "adapter_config.json" in moved:
            assert moved[-1] == "adapter_config.json"
        for path in stage.iterdir():
            path.unlink()
        stage.rmdir()

    replace_model(staged(tmp_path, b"new"), tmp_path, made.manifest(10, end="steps"))
    assert finished_model(tmp_path).step == 10


def test_a_model_that_lost_a_file_is_not_finished(tmp_path):
    replace_model(staged(tmp_path, b"new"), tmp_path, made.manifest(10, end="steps"))
    (tmp_path / "adapter_model.safetensors").unlink()

    assert finished_model(tmp_path) is None
