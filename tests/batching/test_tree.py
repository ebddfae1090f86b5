"""the token tree: every sequence can be read off it, and what is shared stands in it once"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.batching.prefixes import MIN_SAVED
from luthier.records import IGNORE_INDEX, Segment
from tests.rows import build_tree, pad


@st.composite
def forests(draw):
    """Few tokens and beginnings of earlier sequences, so that much is shared, nested or equal."""
    rows = []
    for _ in range(draw(st.integers(1, 9))):
        ids = draw(st.lists(st.integers(1, 3), max_size=30))
        if rows and draw(st.booleans()):
            before = draw(st.sampled_from(rows))["input_ids"]
            ids = before[: draw(st.integers(0, len(before)))] + ids
        ids = ids or [draw(st.integers(1, 3))]
        learned = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        labels = [t if keep else IGNORE_INDEX for t, keep in zip(ids, learned, strict=True)]
        row = {"input_ids": ids, "labels": labels}
        if draw(st.booleans()):
            of_token = st.sampled_from([0.5, 1.0, 2.0])
            row["weights"] = draw(st.lists(of_token, min_size=len(ids), max_size=len(ids)))
        rows.append(row)
    return rows


def path_to(batch, position):
    """The places that the token at `position` may see, as the segments say it."""
    at = next(i for i, each in enumerate(batch.segments) if each.start <= position < each.end)
    path = list(range(batch.segments[at].start, position + 1))
    while (at := batch.segments[at].parent) != -1:
        path = [*range(batch.segments[at].start, batch.segments[at].end), *path]
    return path


def nodes_of(rows):
    """The size of the tree in which every common beginning is shared: its distinct beginnings."""
    return len(
        {tuple(row["input_ids"][: n + 1]) for row in rows for n in range(len(row["input_ids"]))}
    )


@given(forests(), st.booleans())
def test_every_sequence_can_be_read_on_the_way_to_its_end(rows, share):
    batch = build_tree(rows, share_prefixes=share)

    for row, end in zip(rows, batch.ends.tolist(), strict=True):
        path = path_to(batch, end)
        assert batch.input_ids[0, path].tolist() == row["input_ids"]
        assert batch.position_ids[0, path].tolist() == list(range(len(path)))


@given(forests(), st.booleans())
def test_reads_are_those_of_the_padded_layout(rows, share):
    tree, rectangle = build_tree(rows, share_prefixes=share), pad(rows, pad_token_id=0)

    assert torch.equal(tree.targets, rectangle.targets)
    assert torch.equal(tree.sequences, rectangle.sequences)
    weights = [
        weight
        for row in rows
        for label, weight in zip(row["labels"][1:], row.get("weights", [1] * 99)[1:], strict=False)
        if label != IGNORE_INDEX
    ]
    for batch in (tree, rectangle):
        found = batch.token_numbers.get("weight", torch.ones(len(weights)))
        assert found.tolist() == weights
        assert ("weight" in batch.token_numbers) != all(weight == 1 for weight in weights)
    width = rectangle.input_ids.shape[1]
    for place, cell in zip(tree.sources.tolist(), rectangle.sources.tolist(), strict=True):
        row, column = divmod(cell, width)
        assert (
            tree.input_ids[0, path_to(tree, place)].tolist()
            == (rows[row]["input_ids"][: column + 1])
        )


@given(forests(), st.booleans())
def test_segments_follow_each_other_depth_first(rows, share):
    batch = build_tree(rows, share_prefixes=share)

    assert batch.segments[0].start == 0
    assert batch.segments[-1].end == batch.num_computed
    branch = []
    for index, (start, end, parent) in enumerate(batch.segments):
        assert start < end
        assert start == (batch.segments[index - 1].end if index else 0)
        while branch and branch[-1] != parent:
            branch.pop()
        assert parent == (branch[-1] if branch else -1)
        depth = batch.position_ids[0, batch.segments[parent].end - 1] + 1 if branch else 0
        assert batch.position_ids[0, start:end].tolist() == list(range(depth, depth + end - start))
        branch.append(index)


@given(forests())
def test_a_tree_is_no_larger_than_its_sequences_and_no_smaller_than_what_differs(rows):
    batch = build_tree(rows, share_prefixes=True)

    assert nodes_of(rows) <= batch.num_computed <= batch.num_tokens
    assert batch.num_tokens == sum(len(row["input_ids"]) for row in rows)


@given(forests(), st.data())
def test_no_sequence_misses_a_worthwhile_share_of_its_neighbour(rows, data):
    one, other = (data.draw(st.sampled_from(range(len(rows)))) for _ in range(2))
    batch = build_tree(rows, share_prefixes=True)

    shared = 0
    for a, b in zip(rows[one]["input_ids"], rows[other]["input_ids"], strict=False):
        if a != b:
            break
        shared += 1
    both = set(path_to(batch, batch.ends[one])) & set(path_to(batch, batch.ends[other]))
    assert shared - MIN_SAVED < len(both) <= shared


@given(forests())
def test_segments_begin_only_where_that_saves_enough(rows):
    batch = build_tree(rows, share_prefixes=True)

    for index, (start, end, _) in enumerate(batch.segments):
        children = sum(each.parent == index for each in batch.segments)
        assert children != 1
        assert not children or (end - start) * (children - 1) >= MIN_SAVED


@given(forests())
def test_without_sharing_each_sequence_is_a_segment_in_its_order(rows):
    batch = build_tree(rows, share_prefixes=False)

    assert batch.input_ids[0].tolist() == [token for row in rows for token in row["input_ids"]]
    assert all(segment.parent == -1 for segment in batch.segments)
    assert batch.ends.tolist() == [segment.end - 1 for segment in batch.segments]


def test_sequences_without_a_common_beginning_are_packed_in_their_order():
    rows = [{"input_ids": [t, 5, 6], "labels": [t, 5, 6]} for t in (9, 3, 7)]

    shared, packed = (build_tree(rows, share_prefixes=share) for share in (True, False))

    assert shared.input_ids.tolist() == packed.input_ids.tolist()
    assert shared.segments == packed.segments


def test_answers_to_one_prompt_share_it_and_read_its_last_token_each():
    prompt = list(range(10, 30))
    rows = [
        {"input_ids": [*prompt, *answer], "labels": [IGNORE_INDEX] * 20 + answer}
        for answer in ([1, 2], [3], [4, 5, 6])
    ]

    batch = build_tree(rows, share_prefixes=True)

    assert batch.segments == (
        Segment(0, 20, -1),
        Segment(20, 22, 0),
        Segment(22, 23, 0),
        Segment(23, 26, 0),
    )
    assert batch.sources.tolist() == [19, 20, 19, 19, 23, 24]
    assert batch.targets.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.sequences.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.ends.tolist() == [21, 22, 25]


def test_a_sequence_that_another_begins_with_costs_nothing():
    long = list(range(1, 41))
    rows = [{"input_ids": long[:n], "labels": long[:n]} for n in (3, 40, 1, 40, 17)]

    batch = build_tree(rows, share_prefixes=True)

    assert batch.segments == (Segment(0, 40, -1),)
    assert batch.ends.tolist() == [2, 39, 0, 39, 16]
    assert batch.num_tokens == 101


def test_a_token_is_learned_in_one_sequence_and_not_in_its_twin():
    ids = list(range(1, 13))
    rows = [
        {"input_ids": ids, "labels": ids},
        {"input_ids": ids, "labels": [IGNORE_INDEX] * 11 + ids[11:]},
    ]

    batch = build_tree(rows, share_prefixes=True)

    assert batch.sequences.bincount().tolist() == [11, 1]
    assert batch.sources.tolist() == [*range(11), 10]


def test_a_chain_of_thousands_of_branches_does_not_recurse():
    whole = list(range(1, 3001))
    rows = [
        {"input_ids": np.array([*whole[:n], 4000 + n]), "labels": np.full(n + 1, IGNORE_INDEX)}
        for n in range(8, 3000, 16)
    ]

    batch = build_tree(rows, share_prefixes=True)

    assert batch.num_computed < 3000 + 2 * len(rows)
    assert batch.sources.numel() == 0


@pytest.mark.parametrize("share", [True, False])
def test_no_examples_give_one_unlearned_token(share):
    batch = build_tree([], share_prefixes=share)

    assert batch.input_ids.shape == (1, 1)
    assert batch.position_ids.tolist() == [[0]]
    assert batch.segments == (Segment(0, 1, -1),)
    assert batch.sources.numel() == batch.num_tokens == 0


def test_all_indices_are_int64():
    batch = build_tree(
        [{"input_ids": np.array([1, 2], np.int32), "labels": [1, 2]}], share_prefixes=True
    )

    tensors = (batch.input_ids, batch.position_ids, batch.sources, batch.targets)
    assert {each.dtype for each in (*tensors, batch.sequences, batch.ends)} == {torch.int64}
