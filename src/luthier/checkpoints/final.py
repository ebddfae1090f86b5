"""The model at the end of a run: whole in its folder, or not there as a finished one."""

from __future__ import annotations

import os
from pathlib import Path

from luthier.checkpoints.folders import throw_away
from luthier.checkpoints.manifest import (
    FILE_NAME,
    DamagedManifest,
    Manifest,
    read_manifest,
)
from luthier.checkpoints.publish import seal, sync_folder

CARD = "README.md"
"""Of the adapter library; the run writes its own."""

CONFIGS = ("config.json", "adapter_config.json")
"""What makes a folder a model, moved in when the weights are there."""


def replace_model(stage: Path, output_dir: Path, manifest: Manifest) -> Manifest:
    """Moves what was staged into a run's folder, each file in one move.

    The manifest there goes first and comes last, so whoever is killed in between leaves a folder
    that does not say it is finished. Weights come before the configuration that names them, and
    weights of the model before that are not part of this one go.

    Args:
        stage: the model's files, in the run's folder.
        output_dir: the run's.
        manifest: what the model was made with.
    """
    (stage / CARD).unlink(missing_ok=True)
    sealed = seal(stage, manifest)
    (output_dir / FILE_NAME).unlink(missing_ok=True)
    names = sorted({path.name for path in stage.iterdir()}, key=_place)
    for name in names[:-1]:
        _move(stage / name, output_dir / name)
    for stale in {*output_dir.glob("*.safetensors"), *output_dir.glob("*.safetensors.index.json")}:
        if stale.name not in names:
            stale.unlink()
    _move(stage / names[-1], output_dir / names[-1])
    sync_folder(output_dir)
    stage.rmdir()
    return sealed


def finished_model(output_dir: Path) -> Manifest | None:
    """What the model in a run's folder was made with, when all its files are in place."""
    try:
        manifest = read_manifest(output_dir)
    except DamagedManifest:
        return None
    if manifest is None or not manifest.end:
        return None
    for name, file in manifest.files.items():
        path = output_dir / name
        if not path.is_file() or path.stat().st_size != file.size:
            return None
    return manifest


def _place(name: str) -> tuple[bool, bool, bool, str]:
    is_index = name.endswith(".index.json")
    return name == FILE_NAME, name in CONFIGS, is_index, name


def _move(path: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        throw_away(target)
    os.replace(path, target)
