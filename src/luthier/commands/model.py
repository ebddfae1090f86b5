"""`luthier model`: what is done to a model before it is trained."""

from __future__ import annotations

from luthier.commands.help import run_verb

SUMMARY = "grow a model before training: luthier model expand MODEL --blocks N --output FOLDER"


def run(argv: list[str]) -> int:
    """Runs the verb that the first word names."""
    return run_verb("model", argv)
