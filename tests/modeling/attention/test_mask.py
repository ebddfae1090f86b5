"""every form of a tree's mask says what following each token's path to its root says"""

from __future__ import annotations

import accelerate.utils
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.utils import _apply_to_tensors, _recursive_to

from luthier.modeling.attention.mask import TreeMask
from luthier.records import Segment
from tests.modeling.attention.forest import examples, forests, path_of

CPU = torch.device("cpu")
WINDOWS = st.none() | st.integers(1, 20)


def seen_by_following(segments: list[Segment], window: int | None) -> torch.Tensor:
    tokens = segments[-1].end
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for index, segment in enumerate(segments):
        path = path_of(segments, index)
        for query in range(segment.start, segment.end):
            before = path[: path.index(query) + 1]
            seen[query, before if window is None else before[-window:]] = True
    return seen


@examples
@given(forests(), WINDOWS)
def test_a_token_sees_itself_and_what_stands_before_it_in_its_sequence(segments, window):
    tree = TreeMask(segments, CPU)

    assert torch.equal(tree.allowed(window), seen_by_following(segments, window))


@examples
@given(forests())
def test_depths_count_the_tokens_before_each_in_its_sequence(segments):
    tree = TreeMask(segments, CPU)

    before = [len(path_of(segments, index)) for index in range(len(segments))]
    assert tree.depth == max(before)
    for index, segment in enumerate(segments):
        length = segment.end - segment.start
        depths = range(before[index] - length, before[index])
        assert tree.depths_T[segment.start : segment.end].tolist() == list(depths)


@examples
@given(forests())
def test_squares_and_rectangles_hold_every_pair_once(segments):
    tree = TreeMask(segments, CPU)

    pairs = torch.zeros(tree.num_tokens, tree.num_tokens, dtype=torch.int64)
    for start, end, _ in segments:
        pairs[start:end, start:end] += torch.ones(end - start, end - start).tril().long()
    for first, last, start, end in tree.rectangles:
        pairs[first:last, start:end] += 1
    assert torch.equal(pairs, tree.allowed().long())


@examples
@given(forests(), WINDOWS, st.none() | st.integers(1, 5))
def test_paths_gather_the_keys_that_are_seen_in_order(segments, window, most_queries):
    tree = TreeMask(segments, CPU)
    paths = tree.paths(window, most_queries)
    window = window if tree.is_cut_by(window) else None

    index_P = torch.arange(tree.num_tokens) if paths.index_P is None else paths.index_P
    start = 0
    pieces = zip(
        torch.arange(tree.num_tokens).split(paths.query_lengths),
        index_P.split(paths.key_lengths),
        strict=True,
    )
    for queries, keys in pieces:
        assert queries[0] == start
        start += len(queries)
        assert len(queries) <= (most_queries or tree.num_tokens)
        shift = len(keys) - len(queries)
        for row, query in enumerate(queries.tolist()):
            last = keys[: shift + row + 1]
            seen = last if window is None else last[-window:]
            assert seen.tolist() == tree.allowed(window)[query].nonzero()[:, 0].tolist()
    assert paths.query_bounds.tolist()[-1] == tree.num_tokens
    assert paths.key_bounds.tolist() == [0, *torch.tensor(paths.key_lengths).cumsum(0).tolist()]


def test_a_forest_without_shared_prefixes_gathers_nothing():
    packed = TreeMask([Segment(0, 5, -1), Segment(5, 9, -1)], CPU)

    assert packed.paths().index_P is None
    assert packed.rectangles == ()


def test_a_window_as_long_as_the_deepest_sequence_cuts_nothing():
    tree = TreeMask([Segment(0, 5, -1), Segment(5, 9, 0), Segment(9, 12, 0)], CPU)

    assert tree.is_cut_by(8)
    assert not tree.is_cut_by(9)
    assert not tree.is_cut_by(None)


def test_layers_share_what_was_made_for_the_first():
    tree = TreeMask([Segment(0, 5, -1), Segment(5, 9, 0)], CPU)

    assert tree.paths(3) is tree.paths(3)
    assert tree.on(CPU) is tree
    assert tree.on(torch.device("meta")) is tree.on(torch.device("meta"))
    assert tree.on(torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize(
    "segments",
    [
        [Segment(0, 5, -1), Segment(6, 9, -1)],
        [Segment(0, 5, -1), Segment(5, 5, 0)],
        [Segment(0, 5, 1), Segment(5, 9, -1)],
    ],
    ids=["a gap", "an empty one", "a child before its parent"],
)
def test_segments_that_are_no_tree_are_a_bug(segments):
    with pytest.raises(AssertionError):
        TreeMask(segments, CPU)


@pytest.mark.parametrize(
    "hand_on",
    [
        lambda options: accelerate.utils.send_to_device(options, CPU),
        lambda options: _recursive_to(options, CPU, use_side_stream_for_tensor_copies=False)[0],
        lambda options: _apply_to_tensors(lambda tensor: tensor, options),
    ],
    ids=["accelerate", "DistributedDataParallel", "FullyShardedDataParallel"],
)
def test_wrappers_hand_the_same_mask_on(hand_on):
    tree = TreeMask([Segment(0, 5, -1)], CPU)

    assert hand_on({"tree": tree, "use_cache": False})["tree"] is tree
