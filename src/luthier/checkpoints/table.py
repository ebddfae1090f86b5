"""What a person wants to see of a run's checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.checkpoints.folders import list_checkpoints, size_of, step_of
from luthier.checkpoints.manifest import FILE_NAME, DamagedManifest, read_manifest
from luthier.checkpoints.verify import Problem, verify
from luthier.errors import CheckpointError, MissingArguments

HEADER = ("", "step", "size", "written", "loss", "state")


@dataclass(frozen=True)
class Row:
    """One checkpoint.

    Attributes:
        name: of its folder; `model` for the one at the end of a run.
        step: updates made; None where nothing says it.
        size: bytes of all files.
        written: the time, UTC; empty where no manifest says it.
        loss: the last one logged before.
        problems: why it is bad.
        has_manifest: whether hashes are known.
    """

    name: str
    step: int | None
    size: int
    written: str
    loss: float | None
    problems: list[Problem]
    has_manifest: bool

    def cells(self) -> tuple[str, ...]:
        """As a line of the table."""
        state = "ok" if self.has_manifest else "looks whole (no manifest)"
        return (
            self.name,
            "" if self.step is None else f"{self.step:,}",
            f"{self.size / 2**20:,.1f} MiB",
            self.written.replace("+00:00", "Z"),
            "" if self.loss is None else f"{self.loss:.4f}",
            "bad: " + "; ".join(map(str, self.problems)) if self.problems else state,
        )


def rows_of(folder: Path, *, is_read: bool) -> list[Row]:
    """A row for each checkpoint of a run, by step, and for the model at its end.

    Args:
        folder: of a run, or a single checkpoint.
        is_read: whether hashes are compared, beside names and sizes.

    Raises:
        CheckpointError: if there is none.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder. Name the output_dir of a run.")
    present = [folder] if step_of(folder) is not None else list_checkpoints(folder)
    if folder not in present and (folder / FILE_NAME).is_file():
        present.append(folder)
    if not present:
        raise CheckpointError(
            f"{folder} holds no checkpoint. Name the output_dir of a run, or a checkpoint-N folder."
        )
    return [_row(each, is_read=is_read) for each in present]


def show(argv: Sequence[str], usage: str, *, is_read: bool) -> int:
    """Prints the rows of the folder that the words name.

    Returns:
        The exit code: 1 when a checkpoint is bad.
    """
    if {"-h", "--help"} & set(argv):
        print(usage)
        return 0
    folders = [word for word in argv if word != "--json"]
    if len(folders) != 1:
        raise MissingArguments([f"one folder is expected, found {len(folders)}.\n{usage}"])
    rows = rows_of(Path(folders[0]).expanduser(), is_read=is_read)
    if "--json" in argv:
        print(json.dumps([_as_dict(row) for row in rows], indent=1))
    else:
        print("\n".join(lines(rows)))
    return int(any(row.problems for row in rows))


def lines(rows: Sequence[Row]) -> list[str]:
    """The table as text."""
    table = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(cells[at]) for cells in table) for at in range(len(HEADER))]
    is_number = (False, True, True, False, True, False)
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, is_number, strict=True)
        ).rstrip()
        for cells in table
    ]


def _row(folder: Path, *, is_read: bool) -> Row:
    problems = verify(folder, is_read=is_read)
    step = step_of(folder)
    try:
        manifest = read_manifest(folder)
    except DamagedManifest:
        manifest = None
    if manifest is None:
        return Row(folder.name, step, size_of(folder), "", None, problems, has_manifest=False)
    name = folder.name if step is not None else "model"
    return Row(
        name,
        manifest.step,
        manifest.size,
        manifest.written,
        manifest.loss,
        problems,
        has_manifest=True,
    )


def _as_dict(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "step": row.step,
        "bytes": row.size,
        "written": row.written or None,
        "loss": row.loss,
        "has_manifest": row.has_manifest,
        "problems": [{"file": each.file, "reason": each.reason} for each in row.problems],
    }
