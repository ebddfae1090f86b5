"""a folder never says that it is finished with half a model"""

from __future__ import annotations

import os

import pytest

from luthier.checkpoints.final import finished_model, replace_model
from luthier.checkpoints.verify import verify
from tests.checkpoints import made


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
