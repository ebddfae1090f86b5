"""Which examples of an optimizer step go to which rank and share a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import TypeAlias

from luthier.batching.packing_order import PackingOrder
from luthier.batching.prefixes import MIN_SAVED, Prefixes, find_group_prefixes
from luthier.example import Example

MicroBatches: TypeAlias = list[list[int]]
"""Micro-batches of one rank; each is a list of positions in the step."""

Cut: TypeAlias = Callable[[Sequence[int], int], MicroBatches]
"""Cuts a rank's share into micro-batches of at most so many tokens."""

Cost: TypeAlias = Callable[[Sequence[int]], int]
"""The tokens that a micro-batch computes."""

EVENING_TRIALS = 5
"""Smaller budgets that are tried for micro-batches of like size; each halves the uncertainty."""


def plan_examples(
    examples: Sequence[Example],
    world_size: int,
    token_budget: int,
    *,
    is_padded: bool,
    share_prefixes: bool,
) -> list[MicroBatches]:
    """`plan_step` for these examples, whose sequences stay together."""
    sequences = [each.sequences() for each in examples]
    if is_padded:
        longest = [max(map(len, each)) for each in sequences]
        rows = [*map(len, sequences)]
        return plan_step(longest, world_size, token_budget, is_padded=True, rows=rows)
    if share_prefixes:
        shared, sizes = find_group_prefixes(sequences)
        return plan_step(sizes, world_size, token_budget, is_padded=False, shared=shared)
    lengths = [len(each.input_ids) for each in examples]
    return plan_step(lengths, world_size, token_budget, is_padded=False)


def plan_step(
    lengths: Sequence[int],
    world_size: int,
    token_budget: int,
    *,
    is_padded: bool,
    shared: Prefixes | None = None,
    rows: Sequence[int] | None = None,
) -> list[MicroBatches]:
    """Deals the examples of one step to ranks and cuts each rank's share into micro-batches.

    Pure and deterministic: every rank computes the same plan from the same lengths. The loss of a
    step is a sum over its examples divided once, so any plan gives the same gradient.

    Ranks differ by no more than the longest example in tokens. Where examples begin alike, plans
    that keep them together are made as well, and the one whose busiest rank computes least is
    taken: no rank computes more than the busiest one of the plan that is blind to what is shared.
    (Such ranks are as even before they are cut; a prefix is computed again in each micro-batch.)
    Likewise where rows are padded: padded batches are also made of neighbours in length of the
    whole step, and dealt.

    Args:
        lengths: tokens that each example of the step computes for itself, all ranks together; with
            `is_padded` those of its longest sequence.
        world_size: the number of ranks.
        token_budget: the most tokens of a micro-batch. A longer example travels alone.
        is_padded: whether rows are padded to the longest of their micro-batch, so that a
            micro-batch costs rows times longest; otherwise it costs the sum of its lengths, less
            what its examples share.
        shared: how the examples begin alike, if that is computed once; not with `is_padded`.
        rows: with `is_padded` the sequences of each example; by default one.

    Returns:
        For each rank its micro-batches, equally many on every rank (collectives need that), the
        largest first, so that too large a one fails at once; a micro-batch is empty only where a
        rank has fewer examples than another has micro-batches. Positions inside a micro-batch
        ascend.
    """
    assert world_size > 0, world_size
    assert token_budget > 0, token_budget
    assert shared is None or not is_padded, "nothing is shared in a padded batch"

    num_rows = [1] * len(lengths) if rows is None else rows

    def area(micro_batch: Sequence[int]) -> int:
        longest = max((lengths[each] for each in micro_batch), default=0)
        return longest * sum(num_rows[each] for each in micro_batch)

    def cut_padded(share: Sequence[int], budget: int) -> MicroBatches:
        return _cut_padded(share, lengths, num_rows, budget)

    blind = PackingOrder.apart([n * rows for n, rows in zip(lengths, num_rows, strict=True)])
    cut: Cut = cut_padded if is_padded else blind.cut
    cost: Cost = area if is_padded else blind.cost
    plans = [_cut_evenly(deal, cut, cost, token_budget) for deal in blind.deals(world_size)]
    if is_padded and world_size > 1:
        plans += [
            _deal_padded(blind.positions, world_size, more, cut_padded, area, token_budget)
            for more in (1, 2)
        ]
    if shared is not None and max(shared.common, default=0) >= MIN_SAVED:
        order = PackingOrder.of_tree(shared, lengths)
        cut, cost = order.cut, order.cost
        plans.append(
            _cut_evenly(_lightest(order, world_size, token_budget), cut, cost, token_budget)
        )
    best = min(plans, key=lambda plan: _burden(plan, cost))
    return [
        sorted(map(sorted, micro_batches), key=lambda each: (-cost(each), each))
        for micro_batches in best
    ]


def _lightest(order: PackingOrder, world_size: int, token_budget: int) -> list[list[int]]:
    """The deal whose busiest rank computes least, when each rank's share is cut."""
    deals = list(order.deals(world_size))
    if len(deals) == 1:
        return deals[0]
    cuts = [[order.cut(share, token_budget) for share in deal] for deal in deals]
    return min(zip(deals, cuts, strict=True), key=lambda pair: _burden(pair[1], order.cost))[0]


def _burden(plan: list[MicroBatches], cost: Cost) -> tuple[int, int, int]:
    loads = [sum(map(cost, micro_batches)) for micro_batches in plan]
    return max(loads), sum(loads), max(map(len, plan))


def _cut_padded(
    share: Sequence[int], lengths: Sequence[int], rows: Sequence[int], token_budget: int
) -> MicroBatches:
    """Neighbours in length share a padded batch, the longest first."""
    micro_batches: MicroBatches = []
    longest = num_rows = 0
    for position in sorted(share, key=lengths.__getitem__, reverse=True):
        if micro_batches and longest * (num_rows + rows[position]) <= token_budget:
            micro_batches[-1].append(position)
            num_rows += rows[position]
        else:
            micro_batches.append([position])
            longest, num_rows = lengths[position], rows[position]
    return micro_batches


def _deal_padded(
    order: Sequence[int], world_size: int, more: int, cut: Cut, cost: Cost, token_budget: int
) -> list[MicroBatches]:
    """Neighbours in length of the whole step share padded batches, and those are dealt to ranks.

    `order` is all positions, the longest first, and `more` how many times the fewest micro-batches
    that fit the budget there are; more are more even.
    """
    batches = cut(order, token_budget)
    most = more * -(-len(batches) // world_size)
    batches = _even_out(batches, order, cut, cost, token_budget, most * world_size)
    _split_until(batches, cost, most * world_size)
    ranks: list[MicroBatches] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]  # a heap of the ranks that take more
    for batch in sorted(batches, key=cost, reverse=True):
        load, rank = heappop(loads)
        ranks[rank].append(batch)
        if len(ranks[rank]) < most:
            heappush(loads, (load + cost(batch), rank))
    return ranks


def _cut_evenly(
    shares: list[list[int]], cut: Cut, cost: Cost, token_budget: int
) -> list[MicroBatches]:
    """Cuts each rank's share into equally many micro-batches, as even as it is free."""
    ranks = [cut(share, token_budget) for share in shares]
    most = max(len(micro_batches) for micro_batches in ranks)
    for rank, share in enumerate(shares):
        ranks[rank] = _even_out(ranks[rank], share, cut, cost, token_budget, most)
        _split_until(ranks[rank], cost, most)
    return ranks


def _even_out(
    micro_batches: MicroBatches,
    share: Sequence[int],
    cut: Cut,
    cost: Cost,
    token_budget: int,
    most: int,
) -> MicroBatches:
    """The share cut by a smaller budget that gives at most `most` and does not cost more."""
    costs = [cost(each) for each in micro_batches]
    within = [each for each in costs if each <= token_budget]
    if not within:
        return micro_batches
    high = max(within)
    low = max(sum(within) // (most - len(costs) + len(within)) - 1, 0)
    for _ in range(EVENING_TRIALS):
        if high - low < 2:
            break
        budget = (low + high) // 2
        trial = cut(share, budget)
        if len(trial) <= most and sum(map(cost, trial)) <= sum(costs):
            micro_batches, high = trial, budget
        else:
            low = budget
    return micro_batches


def _split_until(micro_batches: MicroBatches, cost: Cost, wanted: int) -> None:
    """Halves the heaviest micro-batch that has more than one example until there are `wanted`."""
    while len(micro_batches) < wanted:
        heaviest = max((each for each in micro_batches if len(each) > 1), key=cost, default=None)
        if heaviest is None:
            micro_batches.append([])
            continue
        half = len(heaviest) // 2
        micro_batches.append(heaviest[half:])
        del heaviest[half:]
