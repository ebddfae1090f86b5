"""`python src/train.py ...`, the same as `luthier train ...`: the entry that launchers start."""

from __future__ import annotations

import sys

from luthier.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
