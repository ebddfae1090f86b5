"""rows side by side: nothing lost, and the reads point at the predictors of learned tokens"""

import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.records import IGNORE_INDEX
from tests.rows import pad


@st.composite
def examples(draw):
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(1, 99), min_size=1, max_size=12))
        learned = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        labels = [t if keep else IGNORE_INDEX for t, keep in zip(ids, learned, strict=True)]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


@given(examples())
def test_reads_are_the_learned_tokens_and_the_positions_before_them(rows):
    batch = pad(rows, pad_token_id=0)

    width = batch.input_ids.shape[1]
    expected = [
        (row * width + column - 1, label)
        for row, example in enumerate(rows)
        for column, label in enumerate(example["labels"])
        if column > 0 and label != IGNORE_INDEX
    ]
    assert list(zip(batch.sources.tolist(), batch.targets.tolist(), strict=True)) == expected


@given(examples())
def test_every_token_stands_under_the_mask_and_nothing_else(rows):
    batch = pad(rows, pad_token_id=0)

    kept = batch.input_ids[batch.attention_mask.bool()].tolist()
    assert kept == [token for example in rows for token in example["input_ids"]]
    assert batch.num_tokens == len(kept) == batch.attention_mask.sum()


def test_no_examples_give_one_unlearned_token():
    batch = pad([], pad_token_id=7)

    assert batch.input_ids.tolist() == [[7]]
    assert batch.sources.numel() == 0
    assert batch.num_tokens == 0
    assert torch.equal(batch.attention_mask, torch.ones(1, 1, dtype=torch.int64))
