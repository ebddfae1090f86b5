"""Prompts with the answers of other rows: what kto's KL is a mean over (Ethayarajh et al. 2024)."""

# R tokens of an example

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.example import Example
from luthier.records import IGNORE_INDEX

MOST_TRIED = 16
"""Distances that are tried, where prompts stand several times."""


def mismatch(examples: Sequence[Example], others: Sequence[Example], most: int) -> list[Example]:
    """The prompt of each example of one sequence with the answer of another, in `most` tokens.

    Of an answer that would go beyond, the end is cut off.
    """
    made = []
    for example, other in zip(examples, others, strict=True):
        start, begins = _start(example), _start(other)
        ids_R = np.concatenate([example.input_ids[:start], other.input_ids[begins:]])
        num_cut, ids_R = max(len(ids_R) - most, 0), ids_R[:most]
        labels_R = np.concatenate([np.full(start, IGNORE_INDEX), other.labels[begins:]])[:most]
        made.append(
            Example(ids_R, labels_R, origin=example.origin, row=example.row, num_cut=num_cut)
        )
    return made


def distance(prompts: Sequence[bytes]) -> int:
    """How many rows back the other answer stands, so that fewest prompts meet their own again.

    1, unless prompts stand several times, as those of pairs do. Rows before the first are the last.
    """

    def meetings(back: int) -> int:
        return sum(prompts[at] == prompts[at - back] for at in range(len(prompts)))

    best, fewest = 1, len(prompts) + 1
    for back in range(1, min(MOST_TRIED, max(len(prompts), 2))):
        if (found := meetings(back)) < fewest:
            best, fewest = back, found
        if not fewest:
            break
    return best


def prompt_of(example: Example) -> bytes:
    """The tokens before the answer."""
    return np.asarray(example.input_ids[: _start(example)], np.int32).tobytes()


def _start(example: Example) -> int:
    return int(np.argmax(np.asarray(example.labels) != IGNORE_INDEX))
