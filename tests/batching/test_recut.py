"""cutting a step anew: every sequence comes back, with what is read of it, in smaller pieces"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.batching.padded import pad
from luthier.batching.recut import recut, sequences_of
from luthier.batching.steps import StepBuilder
from luthier.batching.tree import build_tree
from tests.batching.test_steps import make_dataset
from tests.batching.test_tree import forests

TENSORS = ("input_ids", "sources", "targets", "sequences", "ends", "position_ids", "weights")


def assert_same(one, other):
    for name in (*TENSORS, "attention_mask"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        assert mine is None or torch.equal(mine, theirs), name
    assert (one.num_tokens, one.segments) == (other.num_tokens, other.segments)


@given(forests(), st.booleans())
def test_a_tree_is_built_again_of_what_is_read_off_it(rows, share):
    tree = build_tree(rows, share_prefixes=share)

    again = build_tree(sequences_of(tree), share_prefixes=share)

    assert [each["input_ids"].tolist() for each in sequences_of(tree)] == [
        row["input_ids"] for row in rows
    ]
    assert_same(again, tree)


@given(forests())
def test_a_rectangle_is_built_again_of_what_is_read_off_it(rows):
    rectangle = pad(rows, 0)

    assert_same(pad(sequences_of(rectangle), 0), rectangle)


@pytest.mark.parametrize("empty", [pad([], 0), build_tree([], share_prefixes=False)])
def test_an_idle_micro_batch_holds_no_sequence(empty):
    assert sequences_of(empty) == []


@pytest.mark.parametrize(("layout", "share"), [("padded", False), ("tree", False), ("tree", True)])
@pytest.mark.parametrize("budget", [1, 12, 40])
def test_a_step_cut_anew_holds_the_same_sequences_in_smaller_pieces(layout, share, budget):
    dataset = make_dataset(16)
    builder = StepBuilder(dataset, "num_learned", 0, 1000, layout=layout, share_prefixes=share)
    step = builder(range(16))

    pieces = recut(step, budget, 0, share_prefixes=share)

    assert (pieces.num_units, pieces.num_examples) == (step.num_units, step.num_examples)
    assert len(pieces.micro_batches) == len(pieces.rows) > len(step.micro_batches) == 1
    assert sorted(row for group in pieces.rows for row in group) == list(range(16))
    for batch, rows in zip(pieces.micro_batches, pieces.rows, strict=True):
        assert batch.num_computed <= budget or len(rows) == 1
        for example, row in zip(sequences_of(batch), rows, strict=True):
            assert example["input_ids"].tolist() == dataset[row]["input_ids"]
            assert example["labels"].tolist()[1:] == dataset[row]["labels"][1:]


def test_rows_are_named_for_each_sequence_of_packed_rows():
    dataset = {
        "input_ids": [[1, 2, 3, 4, 5], [6, 7]],
        "labels": [[1, 2, 3, 4, 5], [6, 7]],
        "sequence_lengths": [[2, 3], [2]],
        "num_learned": [3, 1],
    }

    class Columns(dict):
        def __getitem__(self, key):
            if isinstance(key, str):
                return super().__getitem__(key)
            return {name: [column[n] for n in key] for name, column in self.items()}

    builder = StepBuilder(Columns(dataset), "num_learned", 0, 3, layout="tree")
    step = builder([1, 0])

    found = {
        (row, tuple(example["input_ids"].tolist()))
        for batch, rows in zip(step.micro_batches, step.rows, strict=True)
        for row, example in zip(rows, sequences_of(batch), strict=True)
    }
    assert found == {(0, (1, 2)), (0, (3, 4, 5)), (1, (6, 7))}
