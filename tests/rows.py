"""rows as tests write them, `{"input_ids": [...], "labels": [...]}` -> examples, micro-batches"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.batching import padded, tree
from luthier.batching.batch import MicroBatch
from luthier.example import Example, count_learned


def make_example(row: Mapping[str, Any]) -> Example:
    """An example of `input_ids`, `labels` and perhaps `lengths` and `weights` of tokens."""
    lengths = tuple(row.get("lengths", ()))
    numbers = {"weight": row["weights"]} if "weights" in row else {}
    return Example(
        row["input_ids"],
        row["labels"],
        count_learned(row["labels"], lengths),
        lengths,
        token_numbers=numbers,
    )


def pad(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> MicroBatch:
    return padded.pad([*map(make_example, rows)], pad_token_id)


def build_tree(rows: Sequence[Mapping[str, Any]], *, share_prefixes: bool) -> MicroBatch:
    return tree.build_tree([*map(make_example, rows)], share_prefixes=share_prefixes)
