"""an outdated _pad is replaced, a current one stays"""

from __future__ import annotations

from luthier.modeling.quirks.tokenizer_pad import mend_pad
from tests import tiny


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
