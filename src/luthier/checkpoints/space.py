"""How much room a checkpoint needs, and how much there is."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import torch

from luthier.console import gibibytes
from luthier.errors import SaveError

MARGIN = 1.2
"""A checkpoint may be so much larger than the one before it, or than its tensors."""

BESIDE_TENSORS, OF_A_TOKEN = 1 << 20, 80
"""Bytes of states and small files of a checkpoint, and of each token in a tokenizer's files."""

TORCH_WORDS = ("iostream error", "PytorchStreamWriter", "unexpected pos", "file write failed")
"""How torch's writer says in a RuntimeError that a file could not be written."""


def bytes_of_state(model: Any, optimizer: Any, *, only_model: bool, is_sharded: bool) -> int:
    """Bytes of the tensors that a checkpoint keeps, all ranks together.

    Args:
        model: unwrapped; of an adapted one only what learns is kept.
        optimizer: of the same.
        only_model: whether the checkpoint has no optimizer.
        is_sharded: whether ranks hold parts of it, and float32 weights beside its moments.
    """
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
    """Compares what is free with what is needed.

    Raises:
        OSError: with the numbers, if there is too little.
    """
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
