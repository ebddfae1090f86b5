"""Old checkpoints make room for new ones."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from luthier.training.checkpoints.folders import list_checkpoints, throw_away


def rotate(output_dir: Path, limit: int | None, kept: Collection[Path]) -> list[Path]:
    """Deletes the oldest checkpoints, by step, until no more than a number are left.

    Args:
        output_dir: the run's folder.
        limit: how many may stay; None keeps all.
        kept: those that stay whatever their number: the last good one, and the best.

    Returns:
        What was deleted.
    """
    if limit is None:
        return []
    present = list_checkpoints(output_dir)
    safe = {path.resolve() for path in kept}
    free = [path for path in present if path.resolve() not in safe]
    gone = free[: max(len(present) - max(limit, len(present) - len(free)), 0)]
    for folder in gone:
        throw_away(folder)
    return gone
