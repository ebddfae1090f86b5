"""Rows in blocks that stay in a processor's cache from one operation to the next."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NUMBERS_PER_THREAD = 1 << 18
"""Of one tensor in one block: 1 MiB of float32, so that a few of them share a thread's caches."""

PRODUCT_ROWS_PER_THREAD = 256
LEAST_PRODUCT_ROWS = 512
"""A matrix product of 512 rows runs at 0.98 of the speed of one of 1,536 (EPYC, float32)."""


def row_blocks(tensor_NW: Tensor) -> Iterator[slice]:
    """Cuts the rows of a matrix for operations on one number after the other.

    On another device than a CPU there is one block: its kernels are started one by one, and few
    large ones are what it wants.

    Args:
        tensor_NW: (N, W), of which only shape and device count.

    Yields:
        Slices of about equal length.
    """
    num_rows, width = tensor_NW.shape
    rows = num_rows
    if tensor_NW.device.type == "cpu":
        rows = max(16, NUMBERS_PER_THREAD * torch.get_num_threads() // max(width, 1))
    return _cut(num_rows, rows)


def product_blocks(tensor_NW: Tensor) -> Iterator[slice]:
    """As `row_blocks`, for operations that contain matrix products."""
    rows = num_rows = tensor_NW.shape[0]
    if tensor_NW.device.type == "cpu":
        rows = max(LEAST_PRODUCT_ROWS, PRODUCT_ROWS_PER_THREAD * torch.get_num_threads())
    return _cut(num_rows, rows)


def _cut(num_rows: int, most: int) -> Iterator[slice]:
    num_blocks = max(1, -(-num_rows // max(most, 1)))
    for i in range(num_blocks):
        yield slice(i * num_rows // num_blocks, (i + 1) * num_rows // num_blocks)
