"""Which examples of an optimizer step go to which rank and share a micro-batch."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TypeAlias

MicroBatches: TypeAlias = list[list[int]]
"""Micro-batches of one rank; each is a list of positions in the step."""


def plan_step(
    lengths: Sequence[int], world_size: int, token_budget: int, *, is_padded: bool
) -> list[MicroBatches]:
    """Deals the examples of one step to ranks and cuts each rank's share into micro-batches.

    Pure and deterministic: every rank computes the same plan from the same lengths. The loss of a
    step is a sum over its examples divided once, so any plan gives the same gradient.

    Args:
        lengths: tokens of each example of the step, all ranks together.
        world_size: the number of ranks.
        token_budget: the most tokens of a micro-batch. A longer example travels alone.
        is_padded: whether rows are padded to the longest of their micro-batch, so that a
            micro-batch costs rows times longest; otherwise it costs the sum of its lengths.

    Returns:
        For each rank its micro-batches, equally many on every rank (collectives need that); a
        micro-batch is empty only where a rank has fewer examples than another has micro-batches.
        Positions inside a micro-batch ascend.
    """
    assert world_size > 0, world_size
    assert token_budget > 0, token_budget
    cut = _cut_padded if is_padded else _cut_packed
    ranks = [cut(share, lengths, token_budget) for share in _deal(lengths, world_size)]
    most = max(len(micro_batches) for micro_batches in ranks)
    for micro_batches in ranks:
        _split_until(micro_batches, lengths, most)
    return [[sorted(micro_batch) for micro_batch in micro_batches] for micro_batches in ranks]


def _deal(lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Longest first, each to the rank with the fewest tokens (Graham's LPT rule, 1969)."""
    shares: list[list[int]] = [[] for _ in range(world_size)]
    load = [(0, rank) for rank in range(world_size)]
    for position in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        tokens, rank = heapq.heappop(load)
        shares[rank].append(position)
        heapq.heappush(load, (tokens + lengths[position], rank))
    return shares


def _cut_padded(share: list[int], lengths: Sequence[int], token_budget: int) -> MicroBatches:
    """Neighbours in length share a rectangle; `share` comes longest first."""
    micro_batches: MicroBatches = []
    for position in share:
        longest = lengths[micro_batches[-1][0]] if micro_batches else 0
        if micro_batches and longest * (len(micro_batches[-1]) + 1) <= token_budget:
            micro_batches[-1].append(position)
        else:
            micro_batches.append([position])
    return micro_batches


def _cut_packed(share: list[int], lengths: Sequence[int], token_budget: int) -> MicroBatches:
    """Best fit, longest first: each example goes where it leaves the least room."""
    micro_batches: MicroBatches = []
    room: list[int] = []
    for position in share:
        length = lengths[position]
        fitting = [index for index, left in enumerate(room) if left >= length]
        if fitting:
            best = min(fitting, key=lambda index: room[index])
            micro_batches[best].append(position)
            room[best] -= length
        else:
            micro_batches.append([position])
            room.append(token_budget - length)
    return micro_batches


def _split_until(micro_batches: MicroBatches, lengths: Sequence[int], wanted: int) -> None:
    """Halves the heaviest micro-batch that has more than one example until there are `wanted`."""
    while len(micro_batches) < wanted:
        heaviest = max(
            (each for each in micro_batches if len(each) > 1),
            key=lambda each: sum(lengths[position] for position in each),
            default=None,
        )
        if heaviest is None:
            micro_batches.append([])
            continue
        half = len(heaviest) // 2
        micro_batches.append(heaviest[half:])
        del heaviest[half:]
