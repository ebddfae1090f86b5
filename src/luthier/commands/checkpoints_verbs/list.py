"""`luthier checkpoints list`: a table of a run's checkpoints."""

from __future__ import annotations

from luthier.checkpoints.table import show

SUMMARY = "a line for each checkpoint, by its manifest: luthier checkpoints list FOLDER"

USAGE = """\
usage: luthier checkpoints list FOLDER [--json]

Shows step, size, time and loss of each checkpoint in a run's folder, and whether its files are
there with the sizes that were written. `luthier checkpoints verify` reads them, too.

  --json  prints one JSON document instead of a table

The exit code is 1 when one is bad, 0 otherwise."""


def run(argv: list[str]) -> int:
    """Prints the table."""
    return show(argv, USAGE, is_read=False)
