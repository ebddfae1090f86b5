"""Files that could hold code are read as tensors and plain values only."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from luthier.errors import CheckpointError

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""The variable by which `torch.load` runs no code of a file, whatever its caller says."""

WAIVE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""The variable that would have it run by callers that do not say."""


@contextmanager
def reading_plain_data() -> Iterator[None]:
    """While open, no library that reads a file by pickle runs code from it."""
    before = {name: os.environ.pop(name, None) for name in (FORCE, WAIVE)}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextmanager
def refusing_code(checkpoint: Path | None) -> Iterator[None]:
    """While open, more than plain data in a checkpoint is a CheckpointError with its file."""
    try:
        yield
    except pickle.UnpicklingError as problem:
        file = None if checkpoint is None else _file_with_code(checkpoint)
        if file is None:
            raise
        raise CheckpointError(
            f"{file} holds more than tensors and plain values, and no code of a checkpoint is "
            "run. It was not written by this program, or was changed since: go on from another "
            "checkpoint, and look where this one comes from."
        ) from problem


def _file_with_code(folder: Path) -> Path | None:
    from transformers.trainer_pt_utils import safe_globals

    for path in sorted(folder.rglob("*.pt*")):
        try:
            with safe_globals():  # those of numpy's random states
                torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return path
        except (OSError, RuntimeError, EOFError):
            continue
    return None
