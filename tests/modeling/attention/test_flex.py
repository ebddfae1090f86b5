"""FlexAttention's mask, blocks and scores say what the reference says"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from luthier.modeling.attention import flex
from luthier.modeling.attention.backends import attend_dense
from luthier.modeling.attention.flex import attend_flex, block_mask
from luthier.modeling.attention.mask import AttentionArguments, TreeMask
from tests.modeling.attention.forest import examples, forests

CPU = torch.device("cpu")
WINDOWS = st.none() | st.integers(1, 40)

uncompiled = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@examples
@given(forests(), WINDOWS)
def test_the_rule_gives_the_mask(segments, window):
    tree = TreeMask(segments, CPU)
    token = torch.arange(tree.num_tokens)
    zero = torch.zeros((), dtype=torch.int64)

    rule = block_mask(tree, window).mask_mod(zero, zero, token[:, None], token[None, :])

    assert torch.equal(rule, tree.allowed(window))


@examples
@given(forests(), WINDOWS, st.sampled_from([1, 4, 16]))
def test_no_seen_token_is_in_a_hidden_block_and_no_hidden_one_in_a_full_block(
    segments, window, block
):
    tree = TreeMask(segments, CPU)
    old, flex.BLOCK = flex.BLOCK, block
    try:
        blocks = block_mask(tree, window)
    finally:
        flex.BLOCK = old

    number = -(-tree.num_tokens // block)
    room = number * block - tree.num_tokens
    allowed = torch.nn.functional.pad(tree.allowed(window), (0, room, 0, room))
    tiles = allowed.view(number, block, number, block).transpose(1, 2).flatten(2)
    inside = torch.nn.functional.pad(torch.ones(tree.num_tokens).bool(), (0, room))
    rows = inside.view(number, 1, block, 1) & inside.view(1, number, 1, block)
    whole = (tiles | ~rows.flatten(2)).all(-1)
    for row in range(number):
        full = _listed(blocks.full_kv_num_blocks, blocks.full_kv_indices, row)
        partly = _listed(blocks.kv_num_blocks, blocks.kv_indices, row)
        assert not full & partly
        assert {*tiles[row].any(-1).nonzero()[:, 0].tolist()} <= full | partly
        assert full <= {*whole[row].nonzero()[:, 0].tolist()}
        if window is None:
            assert full | partly == {*tiles[row].any(-1).nonzero()[:, 0].tolist()}


def _listed(counts: torch.Tensor, indices: torch.Tensor, row: int) -> set[int]:
    return set(indices[0, 0, row, : counts[0, 0, row]].tolist())


@uncompiled
@settings(deadline=None, max_examples=10)
@given(
    forests(most_tokens=60),
    st.builds(
        AttentionArguments,
        scale=st.just(0.3),
        window=WINDOWS,
        softcap=st.sampled_from([None, 1.5]),
        sinks_H=st.sampled_from([None, torch.tensor([-1.0, 0.0, 1.0, 3.0])]),
        dropout=st.just(0.0),
    ),
    st.sampled_from([4, 2, 1]),
)
def test_the_uncompiled_function_is_the_reference(segments, arguments, keys):
    tree = TreeMask(segments, CPU)
    draw = torch.Generator().manual_seed(7)
    query, key, value = (
        torch.randn(1, heads, tree.num_tokens, 16, generator=draw) for heads in (4, keys, keys)
    )

    got = attend_flex(query, key, value, tree, arguments, flex_attention)

    torch.testing.assert_close(got, attend_dense(query, key, value, tree, arguments))
