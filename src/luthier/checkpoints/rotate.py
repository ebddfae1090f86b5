"""Old checkpoints make room for new ones."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from luthier.checkpoints.folders import list_checkpoints, step_of, throw_away


def rotate(
    output_dir: Path,
    limit: int | None,
    good: Path | None,
    best: Collection[Path],
    *,
    waits: bool = True,
) -> None:
    """Deletes checkpoints until no more than a number are left, by step, the oldest first.

    Before those go the ones of later steps than the last good one: this run has not made them, but
    went on from before them, since they are damaged.

    Args:
        output_dir: the run's folder.
        limit: how many may stay; None keeps all.
        good: the last good one, which stays whatever the number.
        best: those of the best model, which stay likewise.
        waits: whether their room is free when this returns.
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
