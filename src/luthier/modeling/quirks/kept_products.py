"""oneDNN, which makes the half-precision products of a CPU, keeps the code it has made for them.

Each product of other sizes is a program of its own, and a token tree has another number of tokens
at every step. torch 2.13 keeps the last 1,024, half a megabyte each: a run in bfloat16 grew by 70
to 100 MiB a step until it took more than one in float32. A micro-batch makes about 100 of them,
which every layer uses again. Remove when torch bounds what it keeps by bytes.
"""

from __future__ import annotations

import os

CAPACITY = 256
"""Enough for a micro-batch of 30 lengths; with fewer, every layer would make its own again."""

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The library's own and torch's; both are read at the first product."""


def keep_fewer_products() -> None:
    """Bounds both, unless the environment says how many; changes no result."""
    for name in NAMES:
        os.environ.setdefault(name, str(CAPACITY))
