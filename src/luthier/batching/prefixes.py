"""How sequences begin alike: their lexicographic order, and what neighbours in it share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.batching.rows import Integers

MIN_SAVED = 8
"""Tokens that a shared stretch has to save, or each sequence keeps its own copy.

Every stretch costs one more attention call a layer and makes the sequences behind it look up keys
that are not their own. On a core of a CPU a layer of hidden size 576 takes 0.2 ms for a token and
0.2 to 0.4 ms for such a call; on an accelerator a call is dearer in tokens.
"""


@dataclass(frozen=True)
class Prefixes:
    """Sequences in lexicographic order; what any two share is the least between neighbours.

    Attributes:
        order: the number of each sequence.
        common: tokens that each shares with the one before it in `order`; 0 for the first.
    """

    order: list[int]
    common: list[int]


def find_prefixes(sequences: Sequence[Sequence[int] | Integers]) -> Prefixes:
    """Sorts token sequences and compares neighbours; one that begins another comes before it."""
    # big-endian bytes compare as the numbers do, and Python compares bytes without a loop
    arrays = [np.asarray(each) for each in sequences]
    keys = [each.astype(">u4").tobytes() for each in arrays]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    common = [0] * len(order)
    for at in range(1, len(order)):
        before, here = order[at - 1], order[at]
        if keys[before][:4] == keys[here][:4]:
            common[at] = _count_common(arrays[before], arrays[here])
    return Prefixes(order, common)


def _count_common(first: Integers, second: Integers) -> int:
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    where = int(differs.argmax()) if length else 0
    return where if length and differs[where] else length


def branches(common: Sequence[int], start: int, end: int) -> tuple[int, list[int]]:
    """Where a run of sequences in lexicographic order parts for the first time.

    Args:
        common: as in `Prefixes`.
        start: the first of at least two sequences.
        end: one behind the last.

    Returns:
        The tokens that all of them share, and the limits of the runs that share more: the first
        is `start`, the last `end`.
    """
    depth = min(common[start + 1 : end])
    inner = [at for at in range(start + 1, end) if common[at] == depth]
    return depth, [start, *inner, end]
