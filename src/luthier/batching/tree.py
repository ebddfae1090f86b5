"""Many sequences -> one token tree, in which what they share from their beginning stands once."""

# S sequences, R real tokens of all sequences, T tokens of the tree, P segments, N reads

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from luthier.batching.batch import Integers, MicroBatch, join, join_numbers
from luthier.batching.prefixes import MIN_SAVED, branches, find_prefixes
from luthier.example import Example
from luthier.records import IGNORE_INDEX, Segment


class _Stretch(NamedTuple):
    """A segment by what is in it: the tokens of a sequence between two depths."""

    sequence: int
    start: int
    end: int
    parent: int


def build_tree(examples: Sequence[Example], *, share_prefixes: bool) -> MicroBatch:
    """A micro-batch of one row in which query q may see key k iff k <= q < end of k's subtree.

    Tokens stand in depth-first order and know their depth. Reads come sequence by sequence, as in
    the padded layout: the last token of a shared stretch is read once for each sequence that
    learns what follows it there. A stretch is shared where that saves `MIN_SAVED` tokens; a
    sequence that another one begins with adds nothing. Without `share_prefixes` the sequences are
    packed one after the other, in their order. No examples give one unlearned token, so that a rank
    with nothing to do still takes part in the collectives of a forward and backward pass.
    """
    given = tuple(examples)
    ids_R, labels_R, lengths_S, owners_S = join(given or [Example([0], [IGNORE_INDEX])])
    starts_S = np.cumsum(lengths_S) - lengths_S
    places_R: Integers = np.arange(len(ids_R))
    stretches = [_Stretch(each, 0, n, -1) for each, n in enumerate(lengths_S.tolist())]
    if share_prefixes and (shared := _share(ids_R, starts_S, lengths_S)) is not None:
        stretches, places_R = shared

    sequence_P, start_P, end_P, _ = np.array(stretches).T
    last_P = np.cumsum(end_P - start_P)
    first_P = last_P - (end_P - start_P)
    depths_T = np.arange(last_P[-1]) + np.repeat(start_P - first_P, end_P - start_P)
    origins_T = depths_T + np.repeat(starts_S[sequence_P], end_P - start_P)
    parents = [each.parent for each in stretches]

    is_read_R = labels_R != IGNORE_INDEX
    is_read_R[starts_S] = False
    reads_N = np.flatnonzero(is_read_R)
    return MicroBatch(
        input_ids=torch.from_numpy(ids_R[origins_T][None]),
        position_ids=torch.from_numpy(depths_T[None]),
        segments=tuple(map(Segment, first_P.tolist(), last_P.tolist(), parents)),
        sources=torch.from_numpy(places_R[reads_N - 1]),
        targets=torch.from_numpy(labels_R[reads_N]),
        sequences=torch.from_numpy(np.repeat(np.arange(len(lengths_S)), lengths_S)[reads_N]),
        ends=torch.from_numpy(places_R[starts_S + lengths_S - 1]),
        num_tokens=len(ids_R) if given else 0,
        examples=given,
        owners=torch.from_numpy(owners_S),
        token_numbers=join_numbers(given, "token_numbers", reads_N),
        sequence_numbers=join_numbers(given, "sequence_numbers"),
    )


def _share(
    ids_R: Integers, starts_S: Integers, lengths_S: Integers
) -> tuple[list[_Stretch], Integers] | None:
    """The segments of a tree and the place in it of each token; None where nothing is shared."""
    starts, lengths = starts_S.tolist(), lengths_S.tolist()
    leaves, common, beginnings = _find_leaves(np.split(ids_R, starts[1:]))
    places_R = np.empty_like(ids_R)
    stretches: list[_Stretch] = []
    size = 0
    newest = 0
    runs = [(0, len(leaves), 0, -1)]
    while runs:
        first, last, depth, parent = runs.pop()
        sequence = leaves[first]
        start = starts[sequence]
        if first > newest:  # it begins as the leaf before it, whose places are known
            before = starts[leaves[first - 1]]
            places_R[start : start + depth] = places_R[before : before + depth]
            newest = first
        reach, limits = lengths[sequence], [first]
        if last - first > 1:
            reach, limits = branches(common, first, last)
            if (reach - depth) * (len(limits) - 2) < MIN_SAVED:
                reach = depth
        if reach > depth:
            places_R[start + depth : start + reach] = np.arange(size, size + reach - depth)
            size += reach - depth
            stretches.append(_Stretch(sequence, depth, reach, parent))
            parent = len(stretches) - 1
        children = [(*limit, reach, parent) for limit in pairwise(limits)]
        runs.extend(reversed(children))
    for part, whole in reversed(beginnings):
        places = places_R[starts[whole] : starts[whole] + lengths[part]]
        places_R[starts[part] : starts[part] + lengths[part]] = places
    return (stretches, places_R) if size < len(ids_R) else None


def _find_leaves(
    sequences: Sequence[Integers],
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """The sequences that no other one begins with, in lexicographic order, and what each shares.

    That is with the one before. Third, pairs of a sequence that is no leaf and one that begins with
    it, such that the second of a pair is a leaf or comes first in a later pair.
    """
    prefixes = find_prefixes(sequences)
    leaves: list[int] = []
    common: list[int] = []
    beginnings: list[tuple[int, int]] = []
    for sequence, shared in zip(prefixes.order, prefixes.common, strict=True):
        if leaves and shared == len(sequences[leaves[-1]]):
            beginnings.append((leaves[-1], sequence))
            leaves[-1] = sequence
        else:
            leaves.append(sequence)
            common.append(shared)
    return leaves, common, beginnings
