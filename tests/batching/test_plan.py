"""the plan of a step: whole, within budget, equal in number, balanced"""

from hypothesis import given
from hypothesis import strategies as st

from luthier.batching.plan import plan_step

steps = st.lists(st.integers(1, 300), min_size=1, max_size=60)
ranks = st.integers(1, 9)
budgets = st.integers(1, 600)


@given(steps, ranks, budgets, st.booleans())
def test_every_example_is_planned_exactly_once(lengths, world_size, budget, is_padded):
    plan = plan_step(lengths, world_size, budget, is_padded=is_padded)

    planned = [position for rank in plan for micro_batch in rank for position in micro_batch]
    assert sorted(planned) == list(range(len(lengths)))
    assert len(plan) == world_size


@given(steps, ranks, budgets, st.booleans())
def test_no_micro_batch_of_several_examples_exceeds_the_budget(
    lengths, world_size, budget, is_padded
):
    plan = plan_step(lengths, world_size, budget, is_padded=is_padded)

    for micro_batch in (each for rank in plan for each in rank if len(each) > 1):
        tokens = [lengths[position] for position in micro_batch]
        cost = max(tokens) * len(tokens) if is_padded else sum(tokens)
        assert cost <= budget


@given(steps, ranks, budgets, st.booleans())
def test_all_ranks_compute_the_same_number_of_micro_batches(lengths, world_size, budget, is_padded):
    plan = plan_step(lengths, world_size, budget, is_padded=is_padded)

    assert len({len(rank) for rank in plan}) == 1


@given(steps, ranks, budgets)
def test_ranks_differ_by_no_more_than_the_longest_example(lengths, world_size, budget):
    plan = plan_step(lengths, world_size, budget, is_padded=False)

    loads = [sum(lengths[position] for each in rank for position in each) for rank in plan]
    assert max(loads) - min(loads) <= max(lengths)


def test_a_micro_batch_is_empty_only_where_examples_are_fewer_than_ranks():
    plan = plan_step([5, 7, 3], 4, 100, is_padded=True)

    assert sorted(len(rank[0]) for rank in plan) == [0, 1, 1, 1]


def test_one_rank_with_a_large_budget_takes_the_step_whole():
    assert plan_step([9, 1, 5], 1, 1000, is_padded=True) == [[[0, 1, 2]]]
