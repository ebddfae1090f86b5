"""random forests of token sequences, made without the code that makes them in a run"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from luthier.modeling.attention.mask import AttentionArguments, TreeMask
from luthier.records import Segment

examples = settings(deadline=None, max_examples=60)
"""Of random forests; how long one takes says nothing on a busy machine."""

Attend = Callable[[Tensor, Tensor, Tensor, TreeMask, AttentionArguments], Tensor]


@st.composite
def forests(draw: st.DrawFn, most_tokens: int = 12) -> list[Segment]:
    """Up to ten segments in depth-first order; each hangs from any place on the way to the last."""
    segments: list[Segment] = []
    way = [-1]
    for length in draw(st.lists(st.integers(1, most_tokens), min_size=1, max_size=10)):
        way = way[: draw(st.integers(1, len(way)))]
        start = segments[-1].end if segments else 0
        segments.append(Segment(start, start + length, way[-1]))
        way.append(len(segments) - 1)
    return segments


def path_of(segments: list[Segment], index: int) -> list[int]:
    """Positions of a segment's tokens with those of its ancestors before them."""
    positions: list[int] = []
    while index >= 0:
        positions = [*range(segments[index].start, segments[index].end), *positions]
        index = segments[index].parent
    return positions


@dataclass
class Tree:
    """Sequences merged where they begin alike.

    Attributes:
        ids: the tokens in depth-first order.
        depths: of each token.
        segments: of the tree.
        places: of each sequence the positions of its tokens.
    """

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)


def merge(sequences: list[list[int]]) -> Tree:
    """The tree of some sequences, by comparing them token by token."""
    tree = Tree(places=[[] for _ in sequences])

    def grow(members: list[int], depth: int, parent: int) -> None:
        rest = [each for each in members if len(sequences[each]) > depth]
        for token in dict.fromkeys(sequences[each][depth] for each in rest):
            group = [each for each in rest if sequences[each][depth] == token]
            stretch = sequences[group[0]]
            end = depth + 1
            while all(sequences[each][: end + 1] == stretch[: end + 1] for each in group):
                if len(stretch) == end:
                    break
                end += 1
            start = len(tree.ids)
            tree.ids += stretch[depth:end]
            tree.depths += range(depth, end)
            tree.segments.append(Segment(start, len(tree.ids), parent))
            for each in group:
                tree.places[each] += range(start, len(tree.ids))
            grow(group, end, len(tree.segments) - 1)

    grow(list(range(len(sequences))), 0, -1)
    return tree


def attend_and_learn(
    attend: Attend,
    tree: TreeMask,
    arguments: AttentionArguments,
    *,
    heads: int = 4,
    keys: int = 2,
    size: int = 8,
    value_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Output and gradients of a path on random inputs, always the same ones; sinks where asked."""
    draw = torch.Generator().manual_seed(7)
    shapes = [(heads, size), (keys, size), (keys, value_size or size)]
    inputs = [
        torch.randn(1, tree.num_tokens, *shape, generator=draw)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for shape in shapes
    ]
    leaves = list(inputs)
    if arguments.sinks_H is not None:
        sinks = torch.randn(heads, generator=draw).to(dtype).requires_grad_()
        arguments = arguments._replace(sinks_H=sinks)
        leaves.append(sinks)
    query, key, value = inputs

    out = attend(query, key, value, tree, arguments)
    out.backward(torch.randn(out.shape, generator=draw).to(out.dtype))

    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def apart(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest norm of a difference over the norm of what was wanted.

    Gradients that are zero on paper (a token that sees only itself) are rounding on both sides; no
    norm counts as less than a hundredth of the largest.
    """
    assert [each.shape for each in got] == [each.shape for each in wanted]
    norms = [float(each.double().norm()) for each in wanted]
    return max(
        float((mine.double() - theirs.double()).norm()) / max(norm, max(norms) / 100)
        for mine, theirs, norm in zip(got, wanted, norms, strict=True)
    )
