from __future__ import annotations

import pytest
import torch

from luthier.fused.norm import NUMBERS_PER_THREAD, product_blocks, row_blocks


@pytest.mark.parametrize("cut", [row_blocks, product_blocks])
@pytest.mark.parametrize("num_rows", [0, 1, 16, 513, 5000])
def test_every_row_is_in_one_block(cut, num_rows):
    matrix = torch.arange(num_rows)[:, None].expand(-1, 3)

    rows = torch.cat([matrix[each, 0] for each in cut(matrix)])

    assert rows.tolist() == list(range(num_rows))


def test_blocks_are_of_equal_length_and_fit_a_cache():
    matrix = torch.empty(5000, 1000)

    lengths = [each.stop - each.start for each in row_blocks(matrix)]

    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) * 1000 <= NUMBERS_PER_THREAD * torch.get_num_threads()


def test_another_device_than_a_processor_gets_one_block():
    matrix = torch.empty(50_000, 1000, device="meta")

    assert list(row_blocks(matrix)) == list(product_blocks(matrix)) == [slice(0, 50_000)]
