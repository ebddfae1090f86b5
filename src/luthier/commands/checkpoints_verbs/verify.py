"""`luthier checkpoints verify`: reads every file of a run's checkpoints and compares its hash."""

from __future__ import annotations

from luthier.commands.checkpoints_verbs.list import show

SUMMARY = "read every file and compare its hash: luthier checkpoints verify FOLDER"

USAGE = """\
usage: luthier checkpoints verify FOLDER [--json]

Reads every file of the checkpoints in a run's folder, and of the model at its end, and compares it
with the size and hash in MANIFEST.json. FOLDER may be a single checkpoint. What another program
wrote has no hashes; then the files must be there and look whole.

  --json  prints one JSON document instead of a table

The exit code is 1 when one is bad, 0 otherwise."""


def run(argv: list[str]) -> int:
    """Prints the table."""
    return show(argv, USAGE, is_read=True)
