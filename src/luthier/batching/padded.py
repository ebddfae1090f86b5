"""Sequences side by side, padded on the right: what every model understands."""

# B rows, T tokens of the longest row, R real tokens, N reads

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from luthier.batching.batch import MicroBatch, join, join_numbers
from luthier.example import Example
from luthier.records import IGNORE_INDEX


def pad(examples: Sequence[Example], pad_token_id: int) -> MicroBatch:
    """A micro-batch of right-padded rows, one for each sequence.

    An empty list gives one row of one unlearned token, so that a rank with nothing to do still
    takes part in the collectives of a forward and backward pass.
    """
    given = tuple(examples)
    ids_R, labels_R, lengths_B, owners_B = join(given or [Example([pad_token_id], [IGNORE_INDEX])])
    longest = int(lengths_B.max())
    is_real_BT = np.arange(longest) < lengths_B[:, None]
    input_ids_BT = np.full(is_real_BT.shape, pad_token_id, dtype=np.int64)
    input_ids_BT[is_real_BT] = ids_R
    labels_BT = np.full(is_real_BT.shape, IGNORE_INDEX, dtype=np.int64)
    labels_BT[is_real_BT] = labels_R

    row_N, column_N = np.nonzero(labels_BT[:, 1:] != IGNORE_INDEX)
    starts_B = np.cumsum(lengths_B) - lengths_B
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids_BT),
        attention_mask=torch.from_numpy(is_real_BT.astype(np.int64)),
        sources=torch.from_numpy(row_N * longest + column_N),
        targets=torch.from_numpy(labels_BT[row_N, column_N + 1]),
        sequences=torch.from_numpy(row_N),
        ends=torch.from_numpy(np.arange(len(lengths_B)) * longest + lengths_B - 1),
        num_tokens=len(ids_R) if given else 0,
        examples=given,
        owners=torch.from_numpy(owners_B),
        token_numbers=join_numbers(given, "token_numbers", starts_B[row_N] + column_N + 1),
        sequence_numbers=join_numbers(given, "sequence_numbers"),
    )
