"""`luthier tokenizer`: a vocabulary of one's own, for models that begin from scratch."""

from __future__ import annotations

from luthier.commands.help import run_verb

SUMMARY = "make a tokenizer from texts: luthier tokenizer train FILE ... --output FOLDER"


def run(argv: list[str]) -> int:
    """Runs the verb that the first word names."""
    return run_verb("tokenizer", argv)
