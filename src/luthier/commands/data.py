"""`luthier data`: what can be known of data before anything is trained on it."""

from __future__ import annotations

import importlib
from pathlib import Path

from luthier.commands.help import commands, listing
from luthier.errors import UnknownName

FOLDER = Path(__file__).parent / "data_verbs"
SUMMARY = "look at data before training: luthier data check CONFIG.yaml"


def run(argv: list[str]) -> int:
    """Runs the verb that the first word names."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("\n".join(["usage: luthier data VERB ...", "", *listing(FOLDER)]))
        print("\n`luthier data VERB --help` says more.")
        return 0
    if argv[0] not in commands(FOLDER):
        raise UnknownName("verb of `luthier data`:", argv[0], commands(FOLDER))
    module = importlib.import_module(f"luthier.commands.data_verbs.{argv[0]}")
    code: int = module.run(argv[1:])
    return code
