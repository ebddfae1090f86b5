"""Keys and values of answers that share a batch, where rows come and go."""

# R rows of the buffers, C columns of the buffers, K key heads, D head size, L new tokens of a row

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

SLACK = 128
"""Columns that buffers get beyond what is asked for, so that they are seldom laid out anew."""


@dataclass
class Window:
    """Which part of the buffers a forward pass reads and writes."""

    row: int = 0  # the first
    start: int = 0  # the first column that is read
    end: int = 0  # the column that the first new token is written to


class RowCache(Cache):
    """Keys and values of rows that all end at the same column, each beginning where it may.

    A row that ended gives its place to the last one (`move`); a new one is written so that its last
    token stands where those of the others do. Distances between columns are then distances between
    positions, in every row, and the masks that transformers makes from a two-dimensional one for
    padded batches hold: causal, sliding, and without what lies before a row.
    """

    def __init__(self, windows: Sequence[int | None]) -> None:
        self.window = Window()
        super().__init__(layers=[_Layer(self.window, each) for each in windows])
        self.num_rows = 0  # for which there is room
        self.num_columns = 0

    @property
    def bytes_per_token(self) -> int:
        """What one token of one row takes in all layers; 0 before the first forward pass."""
        return sum(each.shape[1] * each.shape[3] * each.element_size() for each in self._buffers())

    def reserve(self, num_rows: int, width: int) -> None:
        """Has room for so many rows, `width` columns up to `window.end`, and one more after it.

        What lies between `window.start` and `window.end` is kept.
        """
        frame = self.window
        if num_rows <= self.num_rows and width <= frame.end < self.num_columns:
            return
        kept = slice(frame.start, frame.end)
        before = max(width, frame.end - frame.start)
        rows, columns = self.num_rows, before + SLACK
        if num_rows > rows:  # newcomers seldom come alone
            rows = num_rows + num_rows // 4
        old, self.num_rows, self.num_columns = self.num_rows, rows, columns
        for layer in self.layers:
            layer.shape = (rows, columns)
            if layer.is_initialized:
                layer.keys = _laid_out(layer.keys, old, kept, rows, columns, before)
                layer.values = _laid_out(layer.values, old, kept, rows, columns, before)
        frame.start += before - frame.end
        frame.end = before

    def move(self, source: int, target: int) -> None:
        """Copies a row onto another."""
        columns = slice(self.window.start, self.window.end)
        for each in self._buffers():
            each[target, :, columns] = each[source, :, columns]

    def _buffers(self) -> list[Tensor]:
        return [
            each
            for layer in self.layers
            if layer.is_initialized
            for each in (layer.keys, layer.values)
        ]


class _Layer(DynamicLayer):
    """One layer's keys and values: (R, K, C, D)."""

    def __init__(self, window: Window, sliding_window: int | None) -> None:
        super().__init__()
        self.keys: Any = None
        self.values: Any = None
        self.window, self.sliding_window = window, sliding_window
        self.is_sliding = sliding_window is not None
        self.shape = (0, 0)  # rows and columns

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.keys is None:
            self.keys, self.values = (
                each.new_zeros(self.shape[0], each.shape[1], self.shape[1], each.shape[3])
                for each in (key_states, value_states)
            )
            self.is_initialized = True
        frame, start = self.window, self._start()
        rows = slice(frame.row, frame.row + len(key_states))
        end = frame.end + key_states.shape[2]
        self.keys[rows, :, frame.end : end] = key_states
        self.values[rows, :, frame.end : end] = value_states
        return self.keys[rows, :, start:end], self.values[rows, :, start:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        start = self._start()
        return self.window.end + query_length - start, start - self.window.start

    def get_seq_length(self) -> int:
        return self.window.end - self.window.start

    def _start(self) -> int:
        """The first column that the first new token sees."""
        if self.sliding_window is None:
            return self.window.start
        return max(self.window.start, self.window.end - self.sliding_window + 1)


def _laid_out(
    buffer: Tensor, num_old: int, kept: slice, num_rows: int, num_columns: int, end: int
) -> Tensor:
    new = buffer.new_zeros(num_rows, buffer.shape[1], num_columns, buffer.shape[3])
    width = kept.stop - kept.start
    new[:num_old, :, end - width : end] = buffer[:num_old, :, kept]
    return new


def sliding_windows(model: Any) -> list[int | None] | str:
    """The window of each layer, None where it sees everything; or why a `RowCache` does not do."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if any(each.is_prompt_learning for each in getattr(model, "peft_config", {}).values()):
        return "its adapter puts a prompt before every prompt"
    kind = type(base)
    if not kind.__module__.startswith("transformers.models."):
        return f"{kind.__name__} is not one of transformers' own"
    if base.config.is_encoder_decoder or kind._is_stateful:
        return f"{kind.__name__} carries another state than keys and values"
    config = base.config.get_text_config(decoder=True)
    if "mrope_section" in str(getattr(config, "rope_parameters", None)):
        return f"{kind.__name__} counts its positions in several dimensions"
    if getattr(config, "num_kv_shared_layers", 0):
        return f"layers of {kind.__name__} share their keys"
    found: list[int | None] = []
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicLayer:
            found.append(None)
        elif type(layer) is DynamicSlidingWindowLayer:
            found.append(layer.sliding_window)
        else:
            return f"{kind.__name__} carries another state than keys and values"
    return found
