"""the plan of a step: whole, within budget, equal in number, balanced, families together"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.batching.packing_order import PackingOrder
from luthier.batching.plan import plan_examples, plan_step
from luthier.batching.prefixes import find_prefixes
from tests.rows import build_tree, make_example, pad

steps = st.lists(st.integers(1, 300), min_size=1, max_size=60)
ranks = st.integers(1, 9) | st.integers(10, 64)
budgets = st.integers(1, 600)


@st.composite
def families(draw):
    """Sequences, many of which begin as others do."""
    beginnings = [[]]
    for token in range(1, draw(st.integers(1, 5))):
        before = draw(st.sampled_from(beginnings))
        beginnings.append([*before, *[token] * draw(st.integers(1, 60))])
    return [
        [*draw(st.sampled_from(beginnings)), *[9 + at % 7] * draw(st.integers(1, 40))]
        for at in range(draw(st.integers(1, 40)))
    ]


def plan_sharing(rows, world_size, budget):
    lengths = [len(row) for row in rows]
    shared = find_prefixes(rows)
    return plan_step(lengths, world_size, budget, is_padded=False, shared=shared)


def usual_rows(count, seed=0):
    """Rows as Alpaca's are: one system prompt, short questions, log-normal answers."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        asked = max(4, round(draw.lognormvariate(2.9, 0.5)))
        told = min(max(3, round(draw.lognormvariate(4.6, 1.0))), 600)
        rows.append([*[1] * 25, 2 + number, *[3] * (asked + told)])
    return rows


def computed(rows, positions):
    """Tokens of the tree of some rows; none where there are no rows."""
    examples = [{"input_ids": rows[each], "labels": rows[each]} for each in positions]
    return build_tree(examples, share_prefixes=True).num_computed if examples else 0


@given(steps, ranks, budgets, st.booleans())
def test_every_example_is_planned_exactly_once(lengths, world_size, budget, is_padded):
    plan = plan_step(lengths, world_size, budget, is_padded=is_padded)

    planned = [position for rank in plan for micro_batch in rank for position in micro_batch]
    assert sorted(planned) == list(range(len(lengths)))
    assert len(plan) == world_size


@given(families(), ranks, budgets)
def test_every_member_of_a_family_is_planned_once_and_always_alike(rows, world_size, budget):
    plan = plan_sharing(rows, world_size, budget)

    planned = [position for rank in plan for micro_batch in rank for position in micro_batch]
    assert sorted(planned) == list(range(len(rows)))
    assert len(plan) == world_size
    assert len({len(rank) for rank in plan}) == 1
    assert plan == plan_sharing(rows, world_size, budget)


@given(steps, ranks, budgets, st.booleans())
def test_no_micro_batch_of_several_examples_exceeds_the_budget(
    lengths, world_size, budget, is_padded
):
    plan = plan_step(lengths, world_size, budget, is_padded=is_padded)

    for micro_batch in (each for rank in plan for each in rank if len(each) > 1):
        tokens = [lengths[position] for position in micro_batch]
        cost = max(tokens) * len(tokens) if is_padded else sum(tokens)
        assert cost <= budget


@given(families(), ranks, budgets)
def test_no_tree_of_several_examples_exceeds_the_budget(rows, world_size, budget):
    plan = plan_sharing(rows, world_size, budget)

    for micro_batch in (each for rank in plan for each in rank if len(each) > 1):
        assert computed(rows, micro_batch) <= budget


@given(families())
def test_a_tree_is_never_larger_than_planned(rows):
    order = PackingOrder.of_tree(find_prefixes(rows), [len(row) for row in rows])

    everything = range(len(rows))
    assert computed(rows, everything) <= order.cost(everything)
    assert computed(rows, everything[::2]) <= order.cost(everything[::2])


@given(steps, ranks, budgets, st.booleans())
def test_all_ranks_compute_the_same_number_of_micro_batches(lengths, world_size, budget, is_padded):
    plan = plan_step(lengths, world_size, budget, is_padded=is_padded)

    assert len({len(rank) for rank in plan}) == 1


@given(steps, ranks, budgets)
def test_ranks_differ_by_no_more_than_the_longest_example(lengths, world_size, budget):
    plan = plan_step(lengths, world_size, budget, is_padded=False)

    loads = [sum(lengths[position] for each in rank for position in each) for rank in plan]
    assert max(loads) - min(loads) <= max(lengths)


@given(families(), ranks)
def test_every_way_to_deal_leaves_ranks_within_the_longest_example(rows, world_size):
    order = PackingOrder.of_tree(find_prefixes(rows), [len(row) for row in rows])

    for shares in order.deals(world_size):
        loads = [order.cost(share) for share in shares]
        assert max(loads) - min(loads) <= max(map(len, rows))
        assert sorted(position for share in shares for position in share) == list(range(len(rows)))


@given(families(), ranks, budgets)
def test_no_rank_plans_more_than_the_busiest_one_of_the_blind_plan(rows, world_size, budget):
    lengths = [len(row) for row in rows]
    cost = PackingOrder.of_tree(find_prefixes(rows), lengths).cost
    seeing = plan_sharing(rows, world_size, budget)
    blind = plan_step(lengths, world_size, budget, is_padded=False)

    busiest = [max(sum(map(cost, rank)) for rank in plan) for plan in (seeing, blind)]
    assert busiest[0] <= busiest[1]


@given(steps, ranks, budgets, st.booleans())
def test_the_largest_micro_batch_comes_first(lengths, world_size, budget, is_padded):
    def cost(micro_batch):
        tokens = [lengths[position] for position in micro_batch]
        return max(tokens, default=0) * len(tokens) if is_padded else sum(tokens)

    for rank in plan_step(lengths, world_size, budget, is_padded=is_padded):
        costs = [cost(micro_batch) for micro_batch in rank]
        assert costs == sorted(costs, reverse=True)
        assert all(micro_batch == sorted(micro_batch) for micro_batch in rank)


@given(steps, ranks, budgets)
def test_nothing_shared_is_planned_as_without_prefixes(lengths, world_size, budget):
    rows = [[number] * length for number, length in enumerate(lengths)]

    seeing = plan_sharing(rows, world_size, budget)

    assert seeing == plan_step(lengths, world_size, budget, is_padded=False)


def test_a_micro_batch_is_empty_only_where_examples_are_fewer_than_ranks():
    plan = plan_step([5, 7, 3], 4, 100, is_padded=True)

    assert sorted(len(rank[0]) for rank in plan) == [0, 1, 1, 1]


def test_one_rank_with_a_large_budget_takes_the_step_whole():
    assert plan_step([9, 1, 5], 1, 1000, is_padded=True) == [[[0, 1, 2]]]


def test_micro_batches_are_evened_out_where_that_is_free():
    plan = plan_step([10] * 9, 1, 80, is_padded=False)

    assert sorted(len(micro_batch) for micro_batch in plan[0]) == [4, 5]


def test_an_example_beyond_the_budget_travels_alone():
    plan = plan_step([50, 5, 5, 50, 5], 1, 20, is_padded=False)

    assert plan == [[[0], [3], [1, 2, 4]]]


def test_answers_to_one_prompt_share_a_micro_batch():
    rows = [[prompt] * 80 + [answer] * 20 for answer in (8, 9, 10) for prompt in (1, 2, 3)]

    plan = plan_sharing(rows, 1, 180)

    assert sorted(plan[0]) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_families_stay_on_one_rank_where_that_leaves_the_ranks_even():
    rows = [[prompt] * 500 + [answer] * 100 for answer in (8, 9, 10, 11) for prompt in (1, 2, 3, 4)]

    plan = plan_sharing(rows, 4, 2048)

    for rank in plan:
        assert len({rows[position][0] for micro_batch in rank for position in micro_batch}) == 1


def test_one_family_is_spread_over_the_ranks():
    rows = [[1] * 500 + [answer] * 300 for answer in range(8, 16)]

    plan = plan_sharing(rows, 4, 4096)

    assert [len(rank[0]) for rank in plan] == [2, 2, 2, 2]


@pytest.mark.parametrize("num_ranks", [2, 8, 64])
@pytest.mark.parametrize("layout", ["apart", "sharing", "padded"])
def test_the_slowest_rank_of_an_epoch_hardly_exceeds_the_mean(layout, num_ranks):
    rows = usual_rows(900)
    slowest = mean = dealt_slowest = dealt_mean = 0.0
    for start in range(0, len(rows), 8 * num_ranks):
        step = rows[start : start + 8 * num_ranks]
        lengths = [len(row) for row in step]
        if layout == "sharing":
            plan = plan_sharing(step, num_ranks, 2048)
        else:
            plan = plan_step(lengths, num_ranks, 2048, is_padded=layout == "padded")

        def cost(positions, step=step, lengths=lengths):
            if layout == "sharing":
                return computed(step, positions)
            tokens = [lengths[each] for each in positions]
            return sum(tokens) if layout == "apart" else max(tokens, default=0) * len(tokens)

        loads = [sum(map(cost, micro_batches)) for micro_batches in plan]
        slowest, mean = slowest + max(loads), mean + sum(loads) / num_ranks
        dealt = [sum(lengths[rank::num_ranks]) for rank in range(num_ranks)]
        dealt_slowest = dealt_slowest + max(dealt)
        dealt_mean = dealt_mean + sum(dealt) / num_ranks

    # rectangles come in the sizes that their rows have, and cannot be dealt as finely
    assert slowest / mean < (1.08 if layout == "padded" else 1.03)
    assert dealt_slowest / dealt_mean > 1.1


@given(steps, ranks, budgets)
def test_ranks_never_pad_more_than_if_each_example_were_dealt_for_itself(
    lengths, num_ranks, budget
):
    (deal,) = PackingOrder.apart(lengths).deals(num_ranks)
    dealt = [padded_tokens([lengths[each] for each in share], budget) for share in deal]

    plan = plan_step(lengths, num_ranks, budget, is_padded=True)

    planned = [
        sum(len(each) * max((lengths[at] for at in each), default=0) for each in micro_batches)
        for micro_batches in plan
    ]
    assert max(planned) <= max(dealt)


def padded_tokens(lengths, budget):
    """What a rank computes that fills one rectangle after the other, the longest first."""
    total = rows = longest = 0
    for length in sorted(lengths, reverse=True):
        if rows and longest * (rows + 1) <= budget:
            rows += 1
        else:
            total, rows, longest = total + rows * longest, 1, length
    return total + rows * longest


@st.composite
def grouped_families(draw):
    """Examples of one to three sequences, many of which begin as others do."""
    sequences = draw(families())
    examples = []
    while sequences:
        size = draw(st.integers(1, 3))
        group, sequences = sequences[:size], sequences[size:]
        ids = [token for each in group for token in each]
        examples.append({"input_ids": ids, "labels": ids, "lengths": [*map(len, group)]})
    return examples


@given(grouped_families(), st.integers(1, 4), budgets, st.booleans())
def test_no_micro_batch_of_groups_is_larger_than_its_budget(rows, world_size, budget, is_padded):
    examples = [*map(make_example, rows)]

    plan = plan_examples(
        examples, world_size, budget, is_padded=is_padded, share_prefixes=not is_padded
    )

    planned = [each for rank in plan for micro_batch in rank for each in micro_batch]
    assert sorted(planned) == list(range(len(rows)))
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    for micro_batch in (each for rank in plan for each in rank if len(each) > 1):
        chosen = [rows[each] for each in micro_batch]
        built = pad(chosen, 0) if is_padded else build_tree(chosen, share_prefixes=True)
        assert built.num_computed <= budget
