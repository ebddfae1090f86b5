"""products of ever other sizes take no more memory after a while"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from luthier.modeling.quirks import kept_products

GROWTH = """
import ctypes, torch
from luthier.modeling.quirks import kept_products

class Heap(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Heap
kept_products.CAPACITY = 4
kept_products.keep_fewer_products()
weight = torch.ones(256, 256, dtype=torch.bfloat16)
for size in range(100, 124):
    torch.ones(size, 256, dtype=torch.bfloat16) @ weight
    if size in (107, 123):
        print(mallinfo().uordblks)
"""


def test_the_libraries_of_this_release_read_the_bound():
    if sys.platform != "linux" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this machine has no products in bfloat16, or does not say what they take")
    fresh = {name: value for name, value in os.environ.items() if name not in kept_products.NAMES}

    done = subprocess.run(
        [sys.executable, "-c", GROWTH], env=fresh, capture_output=True, text=True, check=True
    )

    before, after = map(int, done.stdout.split())
    assert after - before < 1 << 20  # without a bound 8.8 MB, for 16 products


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv(kept_products.NAMES[0], "7")
    monkeypatch.delenv(kept_products.NAMES[1], raising=False)

    kept_products.keep_fewer_products()

    assert [os.environ[name] for name in kept_products.NAMES] == ["7", "256"]
