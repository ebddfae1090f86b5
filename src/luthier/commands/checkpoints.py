"""`luthier checkpoints`: which checkpoints a run has, and whether they are as they were written."""

from __future__ import annotations

from luthier.commands.help import run_verb

SUMMARY = "list a run's checkpoints and verify them: luthier checkpoints list FOLDER"


def run(argv: list[str]) -> int:
    """Runs the verb that the first word names."""
    return run_verb("checkpoints", argv)
