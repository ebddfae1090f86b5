"""Examples side by side in a rectangle, padded on the right: the layout every model understands."""

# B rows, T tokens of the longest row, N reads

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch

from luthier.batching.batch import MicroBatch
from luthier.records import IGNORE_INDEX


class Example(TypedDict):
    """A row of an encoded data set, as far as batching reads it."""

    input_ids: Sequence[int]
    labels: Sequence[int]


def pad(examples: Sequence[Example], pad_token_id: int) -> MicroBatch:
    """A micro-batch of right-padded rows.

    An empty list gives one row of one unlearned token, so that a rank with nothing to do still
    takes part in the collectives of a forward and backward pass.
    """
    longest = max((len(example["input_ids"]) for example in examples), default=1)
    rows = max(len(examples), 1)
    input_ids_BT = torch.full((rows, longest), pad_token_id, dtype=torch.int64)
    labels_BT = torch.full((rows, longest), IGNORE_INDEX, dtype=torch.int64)
    attention_mask_BT = torch.zeros((rows, longest), dtype=torch.int64)
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        input_ids_BT[row, :length] = torch.as_tensor(example["input_ids"])
        labels_BT[row, :length] = torch.as_tensor(example["labels"])
        attention_mask_BT[row, :length] = 1
    if not examples:
        attention_mask_BT[0, 0] = 1

    row_N, column_N = torch.nonzero(labels_BT[:, 1:] != IGNORE_INDEX, as_tuple=True)
    return MicroBatch(
        input_ids=input_ids_BT,
        attention_mask=attention_mask_BT,
        sources=row_N * longest + column_N,
        targets=labels_BT[row_N, column_N + 1],
        sequences=row_N,
        ends=torch.arange(rows) * longest + (attention_mask_BT.sum(dim=1) - 1),
        num_tokens=sum(len(example["input_ids"]) for example in examples),
    )
