"""a checkpoint is good as it was written, and in no other way"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from luthier.checkpoints.files import files_below
from luthier.checkpoints.manifest import FILE_NAME, DamagedManifest, read_manifest
from luthier.checkpoints.verify import newest_valid, verify
from tests.checkpoints import made


def test_a_published_checkpoint_is_good_and_says_what_it_was_made_with(tmp_path):
    folder = made.checkpoint(tmp_path, 3)

    found = read_manifest(folder)

    assert verify(folder) == []
    assert found is not None
    assert (found.step, found.loss, found.seed) == (3, 2.5, 1)
    assert set(found.files) == {*made.FILES, "trainer_state.json"}
    assert found.size == sum(p.stat().st_size for p in files_below(folder) if p.name != FILE_NAME)


def missing(path: Path) -> None:
    path.unlink()


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [missing, half, empty, flipped])
def test_damage_to_any_file_is_named_and_the_checkpoint_before_is_taken(tmp_path, damage):
    before, newest = made.checkpoint(tmp_path, 3), made.checkpoint(tmp_path, 12)
    whole = tmp_path / "whole"
    shutil.copytree(newest, whole)

    for path in files_below(whole):
        name = path.relative_to(whole).as_posix()
        shutil.rmtree(newest)
        shutil.copytree(whole, newest)
        assert newest_valid(tmp_path) == newest
        damage(newest / name)

        assert [problem.file for problem in verify(newest)] == [name]
        assert newest_valid(tmp_path) == before


def test_every_single_byte_of_a_manifest_counts(tmp_path):
    folder = made.checkpoint(tmp_path, 3)
    whole = (folder / FILE_NAME).read_bytes()

    for place in range(len(whole)):
        (folder / FILE_NAME).write_bytes(
            whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        )
        with pytest.raises(DamagedManifest):
            read_manifest(folder)


def test_a_manifest_of_a_later_format_asks_for_a_newer_luthier(tmp_path):
    folder = made.checkpoint(tmp_path, 3, format=99)

    assert "format 99" in str(verify(folder)[0])


def test_a_run_without_a_good_checkpoint_has_no_newest(tmp_path):
    assert newest_valid(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-x").mkdir()

    assert newest_valid(tmp_path) is None


@pytest.fixture
def foreign(tmp_path):
    """A checkpoint as transformers writes it."""
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.zeros(4)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 7}))
    return folder


def test_a_whole_checkpoint_of_another_program_is_taken(foreign):
    assert verify(foreign) == []
    assert newest_valid(foreign.parent) == foreign


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"],
)
@pytest.mark.parametrize("damage", [missing, half, empty])
def test_half_a_checkpoint_of_another_program_is_not(foreign, name, damage):
    damage(foreign / name)

    assert name in [problem.file for problem in verify(foreign)]


def test_weights_alone_of_another_program_are_a_checkpoint(foreign):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (foreign / name).unlink()

    assert verify(foreign) == []


def test_every_shard_of_an_index_must_be_there(foreign):
    (foreign / "model.safetensors").rename(foreign / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "c": "model-2.safetensors"}}
    (foreign / "model.safetensors.index.json").write_text(json.dumps(index))

    assert [str(problem) for problem in verify(foreign)] == ["model-2.safetensors is missing"]
