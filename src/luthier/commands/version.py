"""`luthier version`: the version, alone on a line."""

from __future__ import annotations

import luthier

SUMMARY = "print the version"


def run(argv: list[str]) -> int:
    """Prints the version."""
    print(f"luthier {luthier.__version__}")
    return 0
