"""cutting a step anew: every sequence comes back, with what is read of it, in smaller pieces"""

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.batching.split import rebuild, split_micro_batches
from luthier.batching.steps import StepBuilder
from luthier.example import ExampleSet
from tests.batching.test_steps import make_dataset, make_pairs
from tests.batching.test_tree import forests
from tests.rows import build_tree, pad

TENSORS = ("input_ids", "sources", "targets", "sequences", "ends", "owners", "position_ids")


def assert_same(one, other):
    for name in (*TENSORS, "attention_mask"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        assert mine is None or torch.equal(mine, theirs), name
    assert (one.num_tokens, one.segments) == (other.num_tokens, other.segments)
    for name in ("token_numbers", "sequence_numbers"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[each], theirs[each]) for each in mine)


@given(forests(), st.booleans())
def test_a_micro_batch_is_built_again_of_its_examples(rows, share):
    for batch in (build_tree(rows, share_prefixes=share), pad(rows, 0)):
        again = rebuild(batch.examples, batch, 0, share_prefixes=share)

        assert_same(again, batch)


@pytest.mark.parametrize("empty", [pad([], 0), build_tree([], share_prefixes=False)])
def test_an_idle_micro_batch_holds_no_example(empty):
    assert empty.examples == ()


@pytest.mark.parametrize(("layout", "share"), [("padded", False), ("tree", False), ("tree", True)])
@pytest.mark.parametrize("budget", [1, 12, 40])
def test_a_step_cut_anew_holds_the_same_sequences_in_smaller_pieces(layout, share, budget):
    dataset = make_dataset(16)
    builder = StepBuilder(ExampleSet(dataset), 0, 1000, layout=layout, share_prefixes=share)
    step = builder(range(16))

    pieces = split_micro_batches(step, budget, 0, share_prefixes=share)

    assert (pieces.num_units, pieces.num_examples) == (step.num_units, step.num_examples)
    assert len(pieces.micro_batches) > len(step.micro_batches) == 1
    assert sorted(pieces.rows) == list(range(16))
    for batch in pieces.micro_batches:
        assert batch.num_computed <= budget or len(batch.examples) == 1
        for example in batch.examples:
            assert example.input_ids.tolist() == dataset[example.row]["input_ids"]
            assert example.labels.tolist() == dataset[example.row]["labels"]


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_a_step_cut_anew_keeps_the_sequences_of_an_example_together(layout):
    dataset = make_pairs(12)
    builder = StepBuilder(ExampleSet(dataset), 0, 1000, layout=layout, share_prefixes=True)

    pieces = split_micro_batches(builder(range(12)), 20, 0, share_prefixes=True)

    assert len(pieces.micro_batches) > 3
    assert sorted(pieces.rows) == list(range(12))
    for batch in pieces.micro_batches:
        assert batch.num_computed <= 20 or len(batch.examples) == 1
        assert batch.owners.bincount().tolist() == [2] * len(batch.examples)


def test_rows_are_named_for_each_sequence_of_packed_rows():
    dataset = {
        "input_ids": [[1, 2, 3, 4, 5], [6, 7]],
        "labels": [[1, 2, 3, 4, 5], [6, 7]],
        "packed": [[2, 3], [2]],
        "num_units": [3, 1],
    }

    builder = StepBuilder(ExampleSet(datasets.Dataset.from_dict(dataset)), 0, 3, layout="tree")
    step = builder([1, 0])

    found = {
        (example.row, tuple(example.input_ids.tolist()))
        for batch in step.micro_batches
        for example in batch.examples
    }
    assert found == {(0, (1, 2)), (0, (3, 4, 5)), (1, (6, 7))}
