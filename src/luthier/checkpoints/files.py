"""The files of a run's folder: their names, and how one is whole or not there."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from luthier import console

CHECKPOINT = re.compile(r"checkpoint-(\d+)")

FINAL = "final"
"""What a stage is for when it is for the model at the end."""

LEFTOVER = re.compile(rf"\.(?:stage|trash)-(?:checkpoint-\d+|{FINAL})-[0-9a-f]+")


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is published."""
    return output_dir / f"checkpoint-{step}"


def step_of(folder: Path) -> int | None:
    """The step in a folder's name; None where it is not that of a checkpoint."""
    found = CHECKPOINT.fullmatch(folder.name)
    return int(found[1]) if found else None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The folders that are named as checkpoints, good or not, by step."""
    if not output_dir.is_dir():
        return []
    named = [(step_of(path), path) for path in output_dir.iterdir() if path.is_dir()]
    return [path for _, path in sorted((step, path) for step, path in named if step is not None)]


def holds_states(checkpoint: Path) -> bool:
    """Whether a checkpoint holds the optimizer's states; random numbers are written beside them."""
    return any(checkpoint.glob("rng_state*.pth"))


def deepspeed_parts(checkpoint: Path) -> str | None:
    """The strategy of DeepSpeed whose parts lie in a checkpoint, by its files; None without any.

    Those of the first two stages are alike.
    """
    names = [path.name for path in checkpoint.glob("global_step*/*.pt")]
    if not names:
        return None
    if not any(name.endswith("optim_states.pt") for name in names):
        return "zero0"
    is_third = any(re.match(r"zero_pp_rank_.*model_states\.pt", name) for name in names)
    return "zero3" if is_third else "zero2"


def stage_folder(output_dir: Path, name: str, run_id: str) -> Path:
    """Where something is written before it gets its name; the same for all ranks of a run."""
    return output_dir / f".stage-{name}-{run_id[:12]}"


def throw_away(folder: Path, *, waits: bool = True) -> None:
    """Deletes a folder, never half under its name; `waits` until its room is free, too."""
    trash = folder
    if not LEFTOVER.fullmatch(folder.name):
        trash = folder.with_name(f".trash-{folder.name}-{os.urandom(6).hex()}")
        folder.rename(trash)
    (delete if waits else delete_later)(trash)


def delete(trash: Path) -> None:
    """Deletes what nobody looks for; says so when that fails."""
    try:
        shutil.rmtree(trash)
    except OSError as problem:
        console.warn(f"{trash} could not be deleted ({problem}). It is not used; delete it.")


def delete_later(trash: Path) -> None:
    """Deletes while training goes on; the program ends after it."""
    Thread(target=delete, args=(trash,), name=f"delete {trash.name}").start()


def sweep(output_dir: Path) -> list[Path]:
    """Deletes, under the lock, the stages and the trash of a killed run; says which."""
    left = [
        path
        for path in (sorted(output_dir.iterdir()) if output_dir.is_dir() else ())
        if LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
    for folder in left:
        throw_away(folder)
    return left


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in files_below(folder))


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def write_whole(path: Path, lines: Iterable[str]) -> Path:
    """Replaces a text file in one move, so that a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Writes one JSON value, indented, in one move; numbers that JSON lacks become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return write_whole(path, [text, "\n"])


def finite(value: Any) -> Any:
    """`value` with None for every NaN and infinity in it, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
