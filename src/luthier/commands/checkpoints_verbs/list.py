"""`luthier checkpoints list`: a table of a run's checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.checkpoints.files import list_checkpoints, size_of, step_of
from luthier.checkpoints.manifest import FILE_NAME, DamagedManifest, read_manifest
from luthier.checkpoints.verify import verify
from luthier.errors import CheckpointError, MissingArguments

SUMMARY = "a line for each checkpoint, by its manifest: luthier checkpoints list FOLDER"

USAGE = """\
usage: luthier checkpoints list FOLDER [--json]

Shows step, size, time and loss of each checkpoint in a run's folder, and whether its files are
there with the sizes that were written. `luthier checkpoints verify` reads them, too.

  --json  prints one JSON document instead of a table

The exit code is 1 when one is bad, 0 otherwise."""

HEADER = ("", "step", "size", "written", "loss", "state")

IS_NUMBER = (False, True, True, False, True, False)


def run(argv: list[str]) -> int:
    """Prints the table."""
    return show(argv, USAGE, is_read=False)


def show(argv: Sequence[str], usage: str, *, is_read: bool) -> int:
    """Prints a row for each checkpoint of the folder that the words name, and for the model there.

    Args:
        argv: the words.
        usage: what help and mistakes show.
        is_read: whether hashes are compared, beside names and sizes.

    Returns:
        1 when a checkpoint is bad.
    """
    folders = [word for word in argv if word != "--json"]
    if len(folders) != 1:
        raise MissingArguments([f"one folder is expected, found {len(folders)}.\n{usage}"])
    folder = Path(folders[0]).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder. Name the output_dir of a run.")
    present = [folder] if step_of(folder) is not None else list_checkpoints(folder)
    if folder not in present and (folder / FILE_NAME).is_file():
        present.append(folder)
    if not present:
        raise CheckpointError(
            f"{folder} holds no checkpoint. Name the output_dir of a run, or a checkpoint-N folder."
        )
    rows = [_row(each, is_read=is_read) for each in present]
    if "--json" in argv:
        print(json.dumps(rows, indent=1))
    else:
        table = [HEADER, *map(_cells, rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            shown = [
                cell.rjust(width) if is_number else cell.ljust(width)
                for cell, width, is_number in zip(cells, widths, IS_NUMBER, strict=True)
            ]
            print("  ".join(shown).rstrip())
    return int(any(row["problems"] for row in rows))


def _row(folder: Path, *, is_read: bool) -> dict[str, Any]:
    """One checkpoint; step, time and loss are null where no manifest says them."""
    problems = verify(folder, is_read=is_read)
    step = step_of(folder)
    try:
        manifest = read_manifest(folder)
    except DamagedManifest:
        manifest = None
    return {
        "name": "model" if manifest is not None and step is None else folder.name,
        "step": step if manifest is None else manifest.step,
        "bytes": size_of(folder) if manifest is None else manifest.size,
        "written": None if manifest is None else manifest.written or None,
        "loss": None if manifest is None else manifest.loss,
        "has_manifest": manifest is not None,
        "problems": [{"file": each.file, "reason": each.reason} for each in problems],
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    problems = [f"{each['file']} {each['reason']}" for each in row["problems"]]
    state = "ok" if row["has_manifest"] else "looks whole (no manifest)"
    return (
        row["name"],
        "" if row["step"] is None else f"{row['step']:,}",
        f"{row['bytes'] / 2**20:,.1f} MiB",
        (row["written"] or "").replace("+00:00", "Z"),
        "" if row["loss"] is None else f"{row['loss']:.4f}",
        "bad: " + "; ".join(problems) if problems else state,
    )
