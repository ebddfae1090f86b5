"""every path gives the reference's attention and gradients; the table picks one that can"""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from luthier.modeling.attention.backends import (
    BACKENDS,
    Demand,
    attend_dense,
    attend_per_segment,
    attend_tree,
    attend_varlen,
    available_backends,
    choose_backend,
    flash_attn_kernel,
    torch_kernel,
)
from luthier.modeling.attention.flash_cpu import attend_flash_cpu
from luthier.modeling.attention.mask import AttentionArguments, TreeMask
from luthier.records import Segment
from tests.modeling.attention.forest import apart, attend_and_learn, examples, forests, path_of

CPU = torch.device("cpu")
SCALE = 0.3
SINKS = torch.zeros(4)
"""Asks for sinks; `attend_and_learn` draws their values."""

ROUNDING = 1e-5
"""Sums of up to a hundred float32 products in another order: some units of 2^-24 = 6e-8 each,
more where gradients nearly cancel."""


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    scale: float,
    window: tuple[int, int],
    softcap: float = 0.0,
) -> Tensor:
    """What flash-attn documents of causal attention, aligned at the bottom right."""
    pieces = []
    for (a, b), (c, d) in zip(
        itertools.pairwise(query_bounds.tolist()),
        itertools.pairwise(key_bounds.tolist()),
        strict=True,
    ):
        groups = query.shape[1] // key.shape[1]
        keys, values = (each[c:d].repeat_interleave(groups, 1) for each in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[a:b], keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        row = torch.arange(b - a)[:, None] + (d - c) - (b - a)
        column = torch.arange(d - c)[None, :]
        hidden = column > row
        if window[0] >= 0:
            hidden |= column < row - window[0]
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        pieces.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(pieces)


def like_flash_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    assert causal
    assert dropout_p == 0.0
    assert softmax_scale is not None
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == cu_seqlens_q.diff().max()
    assert max_seqlen_k == cu_seqlens_k.diff().max()
    return plain_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window_size, softcap)


def like_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    assert scale is not None
    assert window_size[1] == 0
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
    return plain_varlen(query, key, value, cu_seq_q, cu_seq_k, scale, window_size)


WAYS = {
    "flash_cpu": attend_flash_cpu,
    "flash_attn": partial(attend_varlen, kernel=flash_attn_kernel(like_flash_attn)),
    "torch_varlen": partial(attend_varlen, kernel=torch_kernel(like_torch)),
    "per_segment": attend_per_segment,
}
"""Each path's way as far as a CPU can go it."""

TERMS = st.builds(
    AttentionArguments,
    scale=st.just(SCALE),
    window=st.none() | st.integers(1, 20),
    softcap=st.sampled_from([None, 1.5]),
    sinks_H=st.sampled_from([None, SINKS]),
    dropout=st.just(0.0),
)
HEADS = st.sampled_from([(4, 4), (4, 2), (4, 1)])


def demand_of(
    tree: TreeMask, arguments: AttentionArguments, dtype: torch.dtype = torch.float32
) -> Demand:
    return Demand(
        "cpu",
        dtype,
        8,
        has_window=tree.is_cut_by(arguments.window),
        has_softcap=arguments.softcap is not None,
        has_sinks=arguments.sinks_H is not None,
    )


def knows(name: str, demand: Demand) -> bool:
    lacks = next(each.lacks for each in BACKENDS if each.name == name)
    asked = {each for each in ("window", "softcap", "sinks") if getattr(demand, f"has_{each}")}
    return not asked & set(lacks)


@examples
@given(forests(), TERMS, HEADS)
def test_every_path_that_knows_the_terms_is_the_reference(segments, arguments, heads):
    tree = TreeMask(segments, CPU)
    shape = dict(zip(("heads", "keys"), heads, strict=True))
    wanted = attend_and_learn(attend_dense, tree, arguments, **shape)

    for name, attend in WAYS.items():
        if knows(name, demand_of(tree, arguments)):
            got = attend_and_learn(attend, tree, arguments, **shape)
            assert apart(got, wanted) < ROUNDING, name


@examples
@given(forests(), TERMS)
def test_the_reference_is_each_sequence_alone(segments, arguments):
    tree = TreeMask(segments, CPU)
    draw = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(1, heads, tree.num_tokens, 8, generator=draw) for heads in (4, 2, 2)
    )
    if arguments.sinks_H is not None:
        arguments = arguments._replace(sinks_H=torch.randn(4, generator=draw))

    out = attend_dense(query, key, value, tree, arguments)

    for index in range(len(segments)):
        path = path_of(segments, index)
        alone = TreeMask([Segment(0, len(path), -1)], CPU)
        inputs = (each[:, :, path] for each in (query, key, value))
        torch.testing.assert_close(out[:, :, path], attend_dense(*inputs, alone, arguments))


def test_the_reference_of_one_sequence_is_torchs_attention():
    draw = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(1, heads, 30, 8, generator=draw) for heads in (4, 2, 2))
    tree = TreeMask([Segment(0, 30, -1)], CPU)

    wanted = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=SCALE, enable_gqa=True
    )

    torch.testing.assert_close(
        attend_dense(query, key, value, tree, AttentionArguments(SCALE)), wanted
    )


@examples
@given(forests(), st.sampled_from([None, SINKS]))
def test_double_precision_stays_double(segments, sinks):
    tree = TreeMask(segments, CPU)
    arguments = AttentionArguments(SCALE, sinks_H=sinks)

    wanted = attend_and_learn(attend_dense, tree, arguments, dtype=torch.float64)
    got = attend_and_learn(attend_flash_cpu, tree, arguments, dtype=torch.float64)

    assert got[0].dtype == torch.float64
    assert apart(got, wanted) < 1e-13


@pytest.mark.parametrize("name", ["flash_cpu", "per_segment"])
@pytest.mark.parametrize("sinks", [None, SINKS], ids=["", "sinks"])
def test_half_precision_is_near_the_double_one(name, sinks):
    segments = [
        Segment(0, 20, -1),
        Segment(20, 40, 0),
        Segment(40, 50, 1),
        Segment(50, 60, 1),
        Segment(60, 90, 0),
    ]
    tree = TreeMask(segments, CPU)
    arguments = AttentionArguments(SCALE, sinks_H=sinks)

    def in_double(query, key, value, tree, arguments):
        sinks = None if arguments.sinks_H is None else arguments.sinks_H.double()
        arguments = arguments._replace(sinks_H=sinks)
        return attend_dense(query.double(), key.double(), value.double(), tree, arguments)

    wanted = attend_and_learn(in_double, tree, arguments, dtype=torch.bfloat16)
    got = attend_and_learn(WAYS[name], tree, arguments, dtype=torch.bfloat16)

    # bfloat16 rounds by up to 2^-9; scores, weights, parts and gradients are each rounded once
    assert got[0].dtype == torch.bfloat16
    assert apart(got, wanted) < 5 * 2**-9


@examples
@given(forests(), TERMS, st.sampled_from([4, 12]))
def test_values_may_be_narrower_or_wider_than_queries(segments, arguments, value_size):
    tree = TreeMask(segments, CPU)

    wanted = attend_and_learn(attend_dense, tree, arguments, value_size=value_size)
    got = attend_and_learn(attend_tree, tree, arguments, value_size=value_size)

    assert apart(got, wanted) < ROUNDING


def test_long_segments_are_cut_into_pieces(monkeypatch):
    monkeypatch.setattr("luthier.modeling.attention.backends.MOST_QUERIES", 7)
    tree = TreeMask([Segment(0, 20, -1), Segment(20, 37, 0), Segment(37, 60, 0)], CPU)

    for arguments in (AttentionArguments(SCALE), AttentionArguments(SCALE, window=5, softcap=2.0)):
        wanted = attend_and_learn(attend_dense, tree, arguments)
        assert apart(attend_and_learn(attend_per_segment, tree, arguments), wanted) < ROUNDING


def test_dropout_keeps_the_mean_and_comes_from_the_global_generator():
    tree = TreeMask([Segment(0, 6, -1), Segment(6, 12, 0)], CPU)
    query, key, value = (torch.randn(1, 2, 12, 4) for _ in range(3))
    kept = attend_tree(query, key, value, tree, AttentionArguments(SCALE))

    def dropped(seed):
        torch.manual_seed(seed)
        return attend_tree(query, key, value, tree, AttentionArguments(SCALE, dropout=0.4))

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))
    mean = torch.stack([dropped(seed) for seed in range(600)]).mean(0)
    # weights of at most 1 times values of about 1, scaled by 1 / 0.6: a standard error of 0.04
    torch.testing.assert_close(mean, kept, atol=0.2, rtol=0)


def test_a_frozen_input_gets_no_gradient():
    tree = TreeMask([Segment(0, 6, -1), Segment(6, 12, 0)], CPU)
    query = torch.randn(1, 2, 12, 4, requires_grad=True)
    key, value = torch.randn(1, 2, 12, 4), torch.randn(1, 2, 12, 4)

    attend_tree(query, key, value, tree, AttentionArguments(SCALE)).sum().backward()

    assert query.grad is not None
    assert key.grad is None


ALL = frozenset(path.name for path in BACKENDS)
HALF = torch.bfloat16
CASES = [
    ("flash_cpu", Demand("cpu", torch.float32, 64)),
    ("flash_cpu", Demand("cpu", HALF, 192, has_sinks=True)),
    ("per_segment", Demand("cpu", torch.float32, 64, has_window=True)),
    ("per_segment", Demand("cpu", torch.float32, 64, has_softcap=True)),
    ("per_segment", Demand("cpu", torch.float32, 64, has_dropout=True)),
    ("flash_attn", Demand("cuda", HALF, 128)),
    ("flash_attn", Demand("cuda", HALF, 256, has_softcap=True, has_window=True)),
    ("flash_attn", Demand("cuda", HALF, 128, has_dropout=True)),
    ("flex", Demand("cuda", HALF, 64, has_sinks=True, has_window=True)),
    ("flex", Demand("cuda", torch.float32, 64, has_softcap=True)),
    ("per_segment", Demand("cuda", torch.float32, 64, has_dropout=True)),
    ("per_segment", Demand("cuda", HALF, 512)),
    ("per_segment", Demand("mps", torch.float32, 64)),
]


@pytest.mark.parametrize(("name", "demand"), CASES, ids=str)
def test_the_first_path_that_can_is_taken(name, demand):
    assert choose_backend(demand, ALL).name == name


def test_without_flash_attn_torchs_own_kernel_comes_next():
    plain = Demand("cuda", HALF, 128, has_window=True)

    assert choose_backend(plain, ALL - {"flash_attn"}).name == "torch_varlen"
    assert choose_backend(plain, ALL - {"flash_attn", "torch_varlen"}).name == "flex"
    assert choose_backend(plain, {"flash_cpu", "per_segment"}).name == "per_segment"
    capped = Demand("cuda", HALF, 128, has_softcap=True)
    assert choose_backend(capped, ALL - {"flash_attn"}).name == "flex"


DEMANDS = st.builds(
    Demand,
    device=st.sampled_from(["cpu", "cuda", "mps", "xpu"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    head_size=st.integers(1, 600),
    has_window=st.booleans(),
    has_softcap=st.booleans(),
    has_sinks=st.booleans(),
    has_dropout=st.booleans(),
)


@examples
@given(DEMANDS, st.sets(st.sampled_from(sorted(ALL))))
def test_some_path_can_do_whatever_is_asked(demand, available):
    path = choose_backend(demand, available | {"per_segment"})

    assert path.can(demand)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is there without a GPU")
def test_a_machine_without_a_gpu_has_two_paths():
    assert available_backends() == {"flash_cpu", "per_segment"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["flash_attn", "torch_varlen", "flex"])
def test_gpu_paths_are_the_reference(name):
    if name not in available_backends():
        pytest.skip(f"{name} is not there")
    path = next(path for path in BACKENDS if path.name == name)
    segments = [Segment(0, 150, -1), Segment(150, 200, 0), Segment(200, 333, 0)]
    tree = TreeMask(segments, torch.device("cuda"))

    def on_gpu(attend):
        def moved(query, key, value, tree, arguments):
            inputs = (each.cuda() for each in (query, key, value))
            return attend(*inputs, tree, arguments).cpu()

        return moved

    for arguments in (AttentionArguments(0.1), AttentionArguments(0.1, window=40)):
        wanted = attend_and_learn(on_gpu(attend_dense), tree, arguments, size=64, dtype=HALF)
        got = attend_and_learn(on_gpu(path.attend), tree, arguments, size=64, dtype=HALF)
        assert apart(got, wanted) < 2**-6
