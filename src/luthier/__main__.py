"""`python -m luthier`, the same as `luthier`."""

from __future__ import annotations

import sys

from luthier.cli import main

if __name__ == "__main__":
    sys.exit(main())
