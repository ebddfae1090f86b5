"""A stage with all its files -> a checkpoint, or a model, that is whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.checkpoints.files import files_below, list_checkpoints, step_of, throw_away
from luthier.checkpoints.manifest import (
    FILE_NAME,
    DamagedManifest,
    FileRecord,
    Manifest,
    read_manifest,
)
from luthier.checkpoints.verify import NUM_THREADS, hash_file
from luthier.console import gibibytes
from luthier.errors import SaveError

MARGIN = 1.2
"""A checkpoint may be so much larger than the one before it, or than its tensors."""

BESIDE_TENSORS, OF_A_TOKEN = 1 << 20, 80
"""Bytes of states and small files of a checkpoint, and of each token in a tokenizer's files."""

TORCH_WORDS = ("iostream error", "PytorchStreamWriter", "unexpected pos", "file write failed")
"""How torch's writer says in a RuntimeError that a file could not be written."""

CARD = "README.md"
"""Of the adapter library; the run writes its own."""

CONFIGS = ("config.json", "adapter_config.json")
"""What makes a folder a model, moved in when the weights are there."""


class Sealing:
    """Hashes and syncs files of a stage while others are still being written."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS)
        self._begun: dict[Path, tuple[tuple[int, int, int], Future[FileRecord]]] = {}

    def begin(self, paths: Iterable[Path]) -> None:
        """Begins with files that are whole; one that is written again is hashed again."""
        for path in paths:
            stamp = _stamp(path)
            if path not in self._begun or self._begun[path][0] != stamp:
                self._begun[path] = stamp, self._pool.submit(hash_file, path, is_synced=True)

    def records(self, stage: Path) -> dict[str, FileRecord]:
        """Size and hash of all files of a stage, by name; none of them is written any more."""
        paths = files_below(stage)
        self.begin(paths)
        return {path.relative_to(stage).as_posix(): self._begun[path][1].result() for path in paths}

    def close(self) -> None:
        """Leaves what is not begun, and waits for the rest."""
        self._pool.shutdown(cancel_futures=True)


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def publish(
    stage: Path, folder: Path, manifest: Manifest, sealing: Sealing | None = None
) -> Manifest:
    """Hashes and syncs what was staged, and gives it its name; the manifest as it was written.

    Whoever looks meets the whole checkpoint or none, whenever the machine stops: the files and
    their folders are on disk before the one rename, and that is on disk before this returns. A
    checkpoint of the same name gives way.

    Args:
        stage: the folder that all ranks have written to; none writes any more.
        folder: where it is published, on the same file system.
        manifest: what the checkpoint was made with; its `files` are filled in here.
        sealing: what has hashed and synced some of the files already.

    Raises:
        OSError: if a file cannot be read, written or moved. The stage is left as it is.
    """
    sealed = seal(stage, manifest, sealing)
    if folder.is_dir():
        throw_away(folder)
    stage.rename(folder)
    sync_folder(folder.parent)
    return sealed


def seal(stage: Path, manifest: Manifest, sealing: Sealing | None = None) -> Manifest:
    """Writes the manifest of a folder's files, and everything to disk."""
    (stage / FILE_NAME).unlink(missing_ok=True)
    own = Sealing() if sealing is None else sealing
    try:
        sealed = replace(manifest, files=own.records(stage))
    finally:
        own.close()
    with (stage / FILE_NAME).open("w", encoding="utf-8") as file:
        file.write(sealed.text())
        file.flush()
        os.fsync(file.fileno())
    for folder in [*(path for path in stage.rglob("*") if path.is_dir()), stage]:
        sync_folder(folder)
    return sealed


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk, where the file system can be told to."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def replace_model(stage: Path, output_dir: Path, manifest: Manifest) -> Manifest:
    """Moves what was staged into a run's folder, each file in one move.

    The manifest there goes first and comes last, so whoever is killed in between leaves a folder
    that does not say it is finished. Weights come before the configuration that names them, and
    weights of the model before that are not part of this one go.
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


def rotate(
    output_dir: Path,
    limit: int | None,
    good: Path | None,
    best: Collection[Path],
    *,
    waits: bool = True,
) -> None:
    """Deletes checkpoints until `limit` are left, by step, the oldest first; None keeps all.

    Before those go the ones of later steps than the last `good` one: this run has not made them,
    but went on from before them, since they are damaged. It and the `best` stay whatever the
    number. `waits` until the room is free, too.
    """
    if limit is None:
        return
    present = list_checkpoints(output_dir)
    kept = {path.resolve() for path in best}
    last = None if good is None else step_of(good)
    if good is not None:
        kept.add(good.resolve())
    free = [path for path in present if path.resolve() not in kept]
    if last is not None:
        free.sort(key=lambda path: (step_of(path) or 0) < last)
    for folder in free[: max(len(present) - limit, 0)]:
        throw_away(folder, waits=waits)


def bytes_of_state(model: Any, optimizer: Any, *, only_model: bool, is_sharded: bool) -> int:
    """Bytes of the tensors that a checkpoint keeps, all ranks together.

    Of an adapted model only what learns is kept. With `is_sharded` ranks hold parts of the
    optimizer, and float32 weights beside its moments.
    """
    import torch
    from peft import PeftModel

    is_adapted = isinstance(model, PeftModel)
    sizes = [
        (getattr(each, "ds_numel", each.numel()), each.element_size(), each.requires_grad)
        for each in model.parameters()
    ]
    total = int(sum(numel * size for numel, size, learns in sizes if learns or not is_adapted))
    if only_model:
        return total
    if is_sharded:
        return total + 12 * int(sum(numel for numel, _, learns in sizes if learns))
    return total + sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def check_space(folder: Path, needed: int) -> None:
    """Raises an OSError with the numbers if less is free than is needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{gibibytes(free)} are free and {gibibytes(needed)} are needed",
            str(folder),
        )


def is_write_failure(problem: BaseException) -> bool:
    """Whether an error says that a file could not be written, in whatever library's words."""
    from safetensors import SafetensorError

    if isinstance(problem, OSError | SafetensorError | SaveError):
        return True
    return isinstance(problem, RuntimeError) and any(word in str(problem) for word in TORCH_WORDS)


def describe(problem: BaseException) -> str:
    """One line of what went wrong, without the path of a stage that nobody knows."""
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return next(iter(str(problem).splitlines()), type(problem).__name__)
