"""Which tokens of a tree see which, shared by all layers, and what a layer asks besides."""

# T tokens, S segments, P keys of all paths together, H query heads

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from luthier.records import Segment

Kept = TypeVar("Kept")


class AttentionArguments(NamedTuple):
    """The arguments of one attention layer."""

    scale: float  # of the scores
    window: int | None = None
    """How many tokens of its sequence a query sees, itself included; None for all."""
    softcap: float | None = None  # scores become softcap * tanh(score / softcap)
    sinks_H: Tensor | None = None
    """A score for each query head that takes part in the softmax and has no value."""
    dropout: float = 0.0
    """The share of attention weights that are dropped, from torch's global generator."""


class Paths(NamedTuple):
    """For every segment (or piece of one) its queries and the keys from its root down to it.

    Keys are in the order of depth, so that the last query sees the last key: what kernels for
    variable lengths call causal, aligned at the bottom right.
    """

    index_P: Tensor | None
    """int64, positions of the keys; None where they are the tokens in their order."""
    query_lengths: list[int]  # of each piece; together T
    key_lengths: list[int]  # of each piece; together P
    query_bounds: Tensor  # int32, the running sums of `query_lengths`, from 0
    key_bounds: Tensor  # int32, the running sums of `key_lengths`, from 0


class TreeMask:
    """The mask of a token tree: query q sees key k iff k <= q < end(k).

    end(k) is where the subtree of k's segment ends; tokens are in depth-first order. With a
    sliding window also depth(q) - depth(k) < window. No matrix is made but by `allowed`.

    It travels as a keyword argument through wrappers and checkpointed layers, which hand on what
    is neither a tensor nor a collection of them; so it is neither a tuple nor a dataclass.

    Args:
        segments: consecutive from 0, in depth-first order, parents before children.
        device: where the index tensors are made.

    Attributes:
        num_tokens: T.
        depth: the number of tokens of the longest path.
        rectangles: first and end of queries, first and end of keys that all of them see: one for
            each segment that has descendants, which stand right behind it.
        num_calls: how many attention layers have used it.
        windows_asked: the sliding windows that the model wanted masks for.
        windows_used: the sliding windows that its attention layers handed over.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments = tuple(segments)
        self.device = torch.device(device)
        self.num_tokens = self.segments[-1].end
        self._depths: list[int] = []  # tokens that stand before each segment in its sequences
        self._ends = [segment.end for segment in segments]  # of each segment's last descendant
        expected = 0
        for index, (start, end, parent) in enumerate(self.segments):
            assert start == expected < end, (index, self.segments[index])
            assert -1 <= parent < index, (index, self.segments[index])
            above = self.segments[parent] if parent >= 0 else None
            self._depths.append(0 if above is None else self._depths[parent] + _length(above))
            expected = end
        for index in range(len(self.segments) - 1, -1, -1):
            parent = self.segments[index].parent
            if parent >= 0:
                self._ends[parent] = max(self._ends[parent], self._ends[index])
        self.depth = max(
            depth + _length(segment)
            for depth, segment in zip(self._depths, self.segments, strict=True)
        )
        self.rectangles = tuple(
            (segment.end, end, segment.start, segment.end)
            for segment, end in zip(self.segments, self._ends, strict=True)
            if end > segment.end
        )
        self.num_calls = 0
        self.windows_asked: set[int] = set()
        self.windows_used: set[int] = set()
        self._kept: dict[object, object] = {}

    def on(self, device: torch.device) -> TreeMask:
        """The same mask with its index tensors on another device."""
        if device == self.device:
            return self
        return self.keep(("on", device), lambda: TreeMask(self.segments, device))

    def keep(self, key: object, make: Callable[[], Kept]) -> Kept:
        """What `make` gives, made on the first call only: layers share it."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[return-value]

    def is_cut_by(self, window: int | None) -> bool:
        """Whether a sliding window hides anything that the tree alone would show."""
        return window is not None and self.depth > window

    @property
    def ends_T(self) -> Tensor:
        """(T,) int64: where the subtree of each token's segment ends."""
        return self.keep("ends", lambda: self._spread(self._ends))

    @property
    def depths_T(self) -> Tensor:
        """(T,) int64: how many tokens each token has before it in its sequence."""
        starts = [
            depth - segment.start
            for depth, segment in zip(self._depths, self.segments, strict=True)
        ]
        return self.keep(
            "depths",
            lambda: self._spread(starts) + torch.arange(self.num_tokens, device=self.device),
        )

    def allowed(self, window: int | None = None) -> Tensor:
        """(T, T) bool, queries by keys: the whole mask, for the reference."""

        def make() -> Tensor:
            place = torch.arange(self.num_tokens, device=self.device)
            allowed = (place[None, :] <= place[:, None]) & (place[:, None] < self.ends_T[None, :])
            if window is not None:
                allowed &= self.depths_T[:, None] - self.depths_T[None, :] < window
            return allowed

        return self.keep(("allowed", window), make)

    def paths(self, window: int | None = None, most_queries: int | None = None) -> Paths:
        """The keys of every segment's queries, to be gathered, but those beyond the window.

        Longer segments are cut into pieces of `most_queries`.
        """
        if not self.is_cut_by(window):
            window = None

        def make() -> Paths:
            ranges: list[tuple[int, int]] = []
            query_lengths: list[int] = []
            key_lengths: list[int] = []
            for index, segment in enumerate(self.segments):
                step = most_queries or _length(segment)
                for start in range(segment.start, segment.end, step):
                    end = min(start + step, segment.end)
                    depth = self._depths[index] + start - segment.start
                    first = 0 if window is None else max(0, depth - window + 1)
                    found = self._path(index, end, first)
                    ranges += found
                    query_lengths.append(end - start)
                    key_lengths.append(sum(stop - begin for begin, stop in found))
            index_P = torch.cat([torch.arange(*each) for each in ranges])
            bounds = (
                self._move(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32))
                for lengths in (query_lengths, key_lengths)
            )
            is_plain = len(index_P) == self.num_tokens
            return Paths(
                None if is_plain else self._move(index_P), query_lengths, key_lengths, *bounds
            )

        return self.keep(("paths", window, most_queries), make)

    def _path(self, index: int, end: int, first: int) -> list[tuple[int, int]]:
        """Token ranges from depth `first` to token `end` of a segment, joined where they meet."""
        ranges: list[tuple[int, int]] = []
        while index >= 0:
            begin, depth = self.segments[index].start, self._depths[index]
            if depth + end - begin <= first:
                break
            start = max(begin, begin + first - depth)
            if ranges and ranges[-1][0] == end:
                ranges[-1] = (start, ranges[-1][1])
            else:
                ranges.append((start, end))
            index = self.segments[index].parent
            end = self.segments[index].end
        return ranges[::-1]

    def _spread(self, values: Sequence[int]) -> Tensor:
        """(T,): each segment's value at each of its tokens."""
        lengths = torch.tensor([_length(segment) for segment in self.segments])
        return self._move(torch.tensor(values).repeat_interleave(lengths))

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def _length(segment: Segment) -> int:
    return segment.end - segment.start
