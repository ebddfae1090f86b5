"""what is mended is mended, and only that"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from luthier.modeling.quirks import (
    IS_RENAMED,
    LOG_LINES,
    NAMES,
    keep_fewer_products,
    mend_pad,
    silence_idle_warnings,
)
from tests import tiny

GROWTH = """
import ctypes, torch
from luthier.modeling import quirks

class Heap(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Heap
quirks.CAPACITY = 4
quirks.keep_fewer_products()
weight = torch.ones(256, 256, dtype=torch.bfloat16)
for size in range(100, 124):
    torch.ones(size, 256, dtype=torch.bfloat16) @ weight
    if size in (107, 123):
        print(mallinfo().uordblks)
"""


def test_putting_an_adapter_on_a_model_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silence_idle_warnings()

        get_peft_model(tiny.make_llama(), LoraConfig(target_modules=["q_proj"]))


@pytest.mark.skipif(not IS_RENAMED, reason="this release of transformers has only the old name")
def test_the_warning_about_the_old_name_is_still_made_by_the_libraries():
    """When it is not, its line in the table can go."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
            get_peft_model(tiny.make_llama(), LoraConfig(target_modules=["q_proj"]))


def test_other_warnings_are_heard():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silence_idle_warnings()
        with pytest.raises(FutureWarning, match="something else"):
            warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)

    logger, begin = LOG_LINES[0]
    quiet = logging.LogRecord(logger, logging.WARNING, "", 0, f"{begin} that differ", None, None)
    loud = logging.LogRecord(logger, logging.WARNING, "", 0, "something else", None, None)
    assert not logging.getLogger(logger).filter(quiet)
    assert logging.getLogger(logger).filter(loud)


def test_the_libraries_of_this_release_read_the_bound():
    if sys.platform != "linux" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this machine has no products in bfloat16, or does not say what they take")
    fresh = {name: value for name, value in os.environ.items() if name not in NAMES}

    done = subprocess.run(
        [sys.executable, "-c", GROWTH], env=fresh, capture_output=True, text=True, check=True
    )

    before, after = map(int, done.stdout.split())
    assert after - before < 1 << 20  # without a bound 8.8 MB, for 16 products


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv(NAMES[0], "7")
    monkeypatch.delenv(NAMES[1], raising=False)

    keep_fewer_products()

    assert [os.environ[name] for name in NAMES] == ["7", "256"]


def test_a_pad_without_padding_side_is_replaced():
    tokenizer = tiny.make_tokenizer()

    def _pad(encoded_inputs, max_length=None, padding_strategy=None):
        raise AssertionError("the outdated form was called")

    tokenizer._pad = _pad
    mend_pad(tokenizer)
    padded = tokenizer.pad({"input_ids": [[5, 6, 7], [5]]})

    assert padded["input_ids"] == [[5, 6, 7], [5, 0, 0]]


def test_the_librarys_own_pad_stays():
    tokenizer = tiny.make_tokenizer()
    before = tokenizer._pad

    mend_pad(tokenizer)

    assert tokenizer._pad == before
    assert "_pad" not in vars(tokenizer)
