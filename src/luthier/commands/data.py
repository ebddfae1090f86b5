"""`luthier data`: what can be known of data before anything is trained on it."""

from __future__ import annotations

from luthier.commands.help import run_verb

SUMMARY = "look at data before training: luthier data check CONFIG.yaml"


def run(argv: list[str]) -> int:
    """Runs the verb that the first word names."""
    return run_verb("data", argv)
