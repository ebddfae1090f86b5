"""How sequences begin alike: their lexicographic order, and what neighbours in it share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.batching.batch import Integers

MIN_SAVED = 8
"""Tokens that a shared stretch has to save, or each sequence keeps its own copy.

Every stretch costs one more attention call a layer and makes the sequences behind it look up keys
that are not their own. On a core of a CPU a layer of hidden size 576 takes 0.2 ms for a token and
0.2 to 0.4 ms for such a call; on an accelerator a call is dearer in tokens.
"""


@dataclass(frozen=True)
class Prefixes:
    """Sequences in lexicographic order; what any two share is the least between neighbours."""

    order: list[int]  # the number of each sequence
    common: list[int]  # tokens that each shares with the one before it in `order`; 0 for the first


def find_prefixes(sequences: Sequence[Integers]) -> Prefixes:
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


def find_group_prefixes(groups: Sequence[Sequence[Integers]]) -> tuple[Prefixes, list[int]]:
    """The groups of sequences that stay together, as they begin alike, and the most each computes.

    A group stands where the first of its sequences, in their order, does. What two groups share is
    at least what these two share, so any set of groups computes as one tree the sum of their sizes
    less what neighbours share, or less: the chain of all sequences in their order is a heaviest
    spanning tree of what pairs of them share, and this is another one.
    """
    firsts, sizes = [], []
    for group in groups:
        size = sum(map(len, group))
        first = group[0]
        if len(group) > 1:
            inside = find_prefixes(group)
            size -= sum(map(least_saving, inside.common))
            first = group[inside.order[0]]
        firsts.append(first)
        sizes.append(size)
    return find_prefixes(firsts), sizes


def least_saving(common: int) -> int:
    """What two neighbours that share so many tokens surely save in a tree.

    It leaves a stretch unshared that would save less than MIN_SAVED, so that two sequences save
    MIN_SAVED - 1 tokens fewer than they share at worst. Planned with this least saving, no tree is
    larger than its plan says.
    """
    return max(common - MIN_SAVED + 1, 0)


def _count_common(first: Integers, second: Integers) -> int:
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    where = int(differs.argmax()) if length else 0
    return where if length and differs[where] else length


def branches(common: Sequence[int], start: int, end: int) -> tuple[int, list[int]]:
    """Where a run of two or more sequences in lexicographic order parts for the first time.

    The tokens that all of them share, and the limits of the runs that share more: the first is
    `start`, the last `end`. `common` is as in `Prefixes`.
    """
    depth = min(common[start + 1 : end])
    inner = [at for at in range(start + 1, end) if common[at] == depth]
    return depth, [start, *inner, end]
