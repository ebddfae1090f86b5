"""The examples of a step in the order in which they are dealt to ranks and cut."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from luthier.batching.prefixes import Prefixes, branches, least_saving

MOST_MOVES = 64
"""Examples that are looked at to move one from a rank to another."""

_WHOLE = 1 << 62
"""More tokens than two examples can share: what an example shares with itself."""


@dataclass(frozen=True)
class PackingOrder:
    """Examples in a depth-first order of their prefix tree, the branches with most tokens first.

    Any of them, in this order, compute as a tree the sum of their lengths less what each saves
    next to the one before; and what two save that stand apart is the least of what lies between.
    Without shared prefixes it is the longest example first, and nothing is saved.
    """

    positions: list[int]  # where each example stands in the step
    places: list[int]  # the inverse: where each position of the step stands in the order
    lengths: list[int]  # tokens that each example computes for itself, at most
    saved: list[int]  # tokens that each surely saves next to the one before it

    @classmethod
    def apart(cls, lengths: Sequence[int]) -> PackingOrder:
        """An order that is blind to what examples share."""
        order = list(range(len(lengths)))
        return cls.of_tree(Prefixes(order, [0] * len(order)), lengths)

    @classmethod
    def of_tree(cls, prefixes: Prefixes, lengths: Sequence[int]) -> PackingOrder:
        """An order in which examples that begin alike stand together."""
        saved = [*map(least_saving, prefixes.common)]
        ordered = [lengths[position] for position in prefixes.order]
        sums = list(accumulate((n - s for n, s in zip(ordered, saved, strict=True)), initial=0))

        def lightness(run: tuple[int, int]) -> tuple[int, int]:
            start, end = run
            return sums[start] - sums[end] - saved[start], start

        line: list[int] = []
        links: list[int] = []
        runs = [(0, len(saved), 0)] if saved else []
        while runs:
            start, end, link = runs.pop()
            if end - start == 1:
                line.append(start)
                links.append(link)
                continue
            depth, limits = branches(saved, start, end)
            first, *others = sorted(pairwise(limits), key=lightness)
            runs.extend((*run, depth) for run in reversed(others))
            runs.append((*first, link))
        positions = [prefixes.order[each] for each in line]
        places = [0] * len(positions)
        for place, position in enumerate(positions):
            places[position] = place
        return cls(positions, places, [ordered[each] for each in line], links)

    def cost(self, micro_batch: Sequence[int]) -> int:
        """Tokens that a tree of these positions computes at most."""
        return self._tree_cost(sorted(self.places[position] for position in micro_batch))

    def _tree_cost(self, places: Sequence[int]) -> int:
        saved = sum(self._shared(one, other) for one, other in pairwise(places))
        return sum(self.lengths[place] for place in places) - saved

    def _shared(self, one: int, other: int) -> int:
        """What the examples of two places save next to each other, `one` before `other`."""
        if other - one < 8:  # a slice is as quick
            return min(self.saved[one + 1 : other + 1])
        level = (other - one).bit_length() - 1
        least = self._least[level]
        return min(least[one + 1], least[other + 1 - (1 << level)])

    @cached_property
    def _least(self) -> list[list[int]]:
        """The least of `saved` over 1, 2, 4, ... places from each one on."""
        levels = [np.array(self.saved)]
        while 1 << len(levels) <= len(self.saved):
            half = levels[-1]
            levels.append(np.minimum(half[: -(1 << len(levels) - 1)], half[1 << len(levels) - 1 :]))
        return [level.tolist() for level in levels]

    def deals(self, world_size: int) -> Iterator[list[list[int]]]:
        """Ways to deal the step: the larger the families that stay whole, the less is computed.

        Each gives each rank's positions, in the order of the order. Were they one tree on each
        rank, ranks would differ by the longest example at most. The first way deals every example
        for itself.
        """
        if world_size == 1:
            yield [list(self.positions)]
            return
        fair = -(-self._run_cost(0, len(self.lengths)) // world_size)
        tried: list[list[list[int]]] = []
        for limit in (0, fair // 4, fair // 2, fair, 2 * fair):
            shares = self._deal(self._units(limit), world_size)
            if any(self.saved):
                shares = self._level(shares)
            if shares not in tried:
                tried.append(shares)
                yield [[self.positions[place] for place in share] for share in shares]
            if not any(self.saved):
                return

    def _run_cost(self, start: int, end: int) -> int:
        return sum(self.lengths[start:end]) - sum(self.saved[start + 1 : end])

    def _units(self, limit: int) -> list[tuple[int, int]]:
        """The largest families of at most `limit` tokens, and the examples of no such family."""
        units = []
        runs = [(0, len(self.lengths))] if self.lengths else []
        while runs:
            start, end = runs.pop()
            if end - start > 1:
                depth, limits = branches(self.saved, start, end)
                if depth == 0 or self._run_cost(start, end) > limit:
                    runs.extend(reversed(list(pairwise(limits))))
                    continue
            units.append((start, end))
        return units

    def _deal(self, units: Sequence[tuple[int, int]], world_size: int) -> list[list[int]]:
        """The places for each rank: a unit goes where it leaves the fewest tokens.

        That rank has then no more than the least loaded one would have, which is its load and the
        unit at most: loads never differ by more than the largest unit. With single examples and
        nothing shared it is Graham's LPT rule (1969).
        """
        shares: list[list[int]] = [[] for _ in range(world_size)]
        load = np.zeros(world_size, dtype=np.int64)
        near = np.zeros_like(load)  # what the unit shares with the rank's latest example
        for start, end in units:
            np.minimum(near, self.saved[start], out=near)
            rank = int((load - near).argmin())
            load[rank] += self._run_cost(start, end) - near[rank]
            shares[rank] += range(start, end)
            if end - start > 1:
                np.minimum(near, min(self.saved[start + 1 : end]), out=near)
            near[rank] = _WHOLE
        return shares

    def _level(self, shares: list[list[int]]) -> list[list[int]]:
        """The same places, moved one by one from the busiest rank to the idlest.

        While they differ by more than the longest example, the idlest stays below what the busiest
        had, whichever is moved, so that there is an end. After that only moves that pay are made.
        """
        load = [self._tree_cost(share) for share in shares]
        ranks = range(len(shares))
        while True:
            busiest, idlest = max(ranks, key=load.__getitem__), min(ranks, key=load.__getitem__)
            gap = load[busiest] - load[idlest]
            moves = []
            for place in shares[busiest][:: len(shares[busiest]) // MOST_MOVES + 1]:
                less = self._share_of(place, shares[busiest])
                more = self._share_of(place, shares[idlest])
                moves.append((max(-less, more - gap), more - less, place, less, more))
            change, _, place, less, more = min(moves)
            if change >= 0 and gap <= max(self.lengths):
                return shares
            shares[busiest].remove(place)
            insort(shares[idlest], place)
            load[busiest] -= less
            load[idlest] += more

    def _share_of(self, place: int, share: Sequence[int]) -> int:
        """Tokens of a tree of some places that are there for one of them only, or would be."""
        at = bisect_left(share, place)
        after = bisect_right(share, place)
        before = self._shared(share[at - 1], place) if at else 0
        behind = self._shared(place, share[after]) if after < len(share) else 0
        return self.lengths[place] - max(before, behind)

    def cut(self, share: Sequence[int], token_budget: int) -> list[list[int]]:
        """Best fit of a rank's share: each example where it adds fewest tokens, then least room.

        One longer than `token_budget` travels alone.
        """
        micro_batches: list[list[int]] = []
        # (room, micro-batch) by what the next example shares with them, the most last
        levels: list[tuple[int, list[tuple[int, int]]]] = []
        places = sorted(self.places[position] for position in share)
        for before, place in pairwise([-1, *places]):
            _lower(levels, self._shared(before, place))
            length = self.lengths[place]
            room, index = token_budget - length, len(micro_batches)
            for level, rooms in reversed(levels):
                fitting = bisect_left(rooms, (length - level, 0))
                if fitting < len(rooms):
                    room, index = rooms.pop(fitting)
                    room -= length - level
                    break
            else:
                micro_batches.append([])
            micro_batches[index].append(self.positions[place])
            levels.append((_WHOLE, [(room, index)]))
        return micro_batches


def _lower(levels: list[tuple[int, list[tuple[int, int]]]], most: int) -> None:
    """Makes one level of all above `most`: no more is shared with what comes next."""
    if not levels or levels[-1][0] <= most:
        return
    rooms: list[tuple[int, int]] = []
    while levels and levels[-1][0] >= most:
        more = levels.pop()[1]
        if len(rooms) > len(more):
            rooms, more = more, rooms
        for each in rooms:
            insort(more, each)
        rooms = more
    levels.append((most, rooms))
