"""prompts with the answers of other rows, for a mean over a step or over a set"""

from __future__ import annotations

from itertools import chain

import datasets
import numpy as np
import pytest

from luthier.batching.mismatched import distance, mismatch, prompt_of
from luthier.batching.steps import StepBuilder
from luthier.example import Example, ExampleSet, as_batch

PROMPT, ANSWER = 100, 200


def example(number: int, prompt: int | None = None, length: int = 3) -> Example:
    ids = [PROMPT + (number if prompt is None else prompt)] * 2 + [ANSWER + number] * length
    return Example(ids, [-100, -100, *ids[2:]], num_units=1, row=number)


def table(examples: list[Example]) -> ExampleSet:
    import pyarrow

    return ExampleSet(datasets.Dataset(pyarrow.Table.from_batches([as_batch(examples)])))


def pairs(builder: StepBuilder, rows: list[int]) -> list[tuple[int, int]]:
    """Number of the prompt and of the answer of each sequence that is measured."""
    step = builder(rows)
    found = []
    for batch in step.measured:
        for each in batch.examples:
            found.append((int(each.input_ids[0]) - PROMPT, int(each.input_ids[-1]) - ANSWER))
        assert batch.targets.tolist() == [t for e in batch.examples for t in e.labels if t != -100]
    return sorted(found)


def test_every_prompt_meets_the_answer_before_it_and_none_its_own():
    builder = StepBuilder(table([example(n) for n in range(6)]), 0, 64, mismatches=16)

    assert pairs(builder, [4, 1, 3]) == [(1, 4), (3, 1), (4, 3)]


def test_rows_of_one_prompt_do_not_meet():
    both = [example(n, prompt=n // 2) for n in range(6)]
    builder = StepBuilder(table(both), 0, 64, mismatches=16)
    found = pairs(builder, [0, 1, 2, 3, 4, 5])

    assert sorted(answer for _, answer in found) == [0, 1, 2, 3, 4, 5]
    assert all(prompt != answer // 2 for prompt, answer in found)


@pytest.mark.parametrize("group", [2, 3, 7])
def test_a_set_is_paired_as_a_whole_whatever_its_steps(group: int):
    builder = StepBuilder(table([example(n) for n in range(7)]), 0, 64, mismatches=16, distance=2)
    found = [pairs(builder, [*range(at, min(at + group, 7))]) for at in range(0, 7, group)]

    assert sorted(chain(*found)) == [(n, (n - 2) % 7) for n in range(7)]


def test_the_last_row_of_an_epoch_meets_one_of_the_table():
    builder = StepBuilder(table([example(n) for n in range(3)]), 0, 64, mismatches=16)

    assert pairs(builder, [0]) == [(0, 2)]


def test_ranks_share_them():
    rows = [4, 1, 3, 0, 5, 2]
    whole = StepBuilder(table([example(n) for n in range(6)]), 0, 64, mismatches=16)
    shares = [
        StepBuilder(whole.dataset, 0, 64, rank=rank, world_size=2, mismatches=16)
        for rank in range(2)
    ]

    assert sorted(chain(*(pairs(each, rows) for each in shares))) == pairs(whole, rows)


def test_only_what_has_room_follows_another_prompt():
    (made,) = mismatch([example(0)], [example(1, length=9)], 6)

    assert made.input_ids.tolist() == [100, 100, 201, 201, 201, 201]
    assert made.labels.tolist() == [-100, -100, 201, 201, 201, 201]
    assert made.num_cut == 5
    assert mismatch([example(0)], [example(1)], 60)[0].num_cut == 0


def test_the_distance_is_the_first_at_which_fewest_prompts_meet_themselves():
    several = [prompt_of(example(0, prompt=p)) for p in (0, 0, 0, 1, 1, 1)]

    assert distance([b"a", b"b"]) == 1
    assert distance(several) == 3
    assert distance([b"a"] * 4) == 1
    assert np.isfinite(distance([b"a"]))
