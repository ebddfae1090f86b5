"""Micro-batches that are too large -> smaller ones of the same sequences, with the same reads."""

# B rows, T tokens of a row, S sequences, N reads

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from luthier.batching.batch import MicroBatch, Step
from luthier.batching.padded import pad
from luthier.batching.plan import plan_step
from luthier.batching.prefixes import find_prefixes
from luthier.batching.rows import Example, Integers
from luthier.batching.tree import build_tree
from luthier.records import IGNORE_INDEX


def sequences_of(batch: MicroBatch) -> list[Example]:
    """What a micro-batch was built of, in the order of its `ends`; nothing of an idle one.

    A label that is not read comes back as IGNORE_INDEX, which gives the same reads again.
    """
    if not batch.num_tokens:
        return []
    ids_S = _paths(batch) if batch.attention_mask is None else _rows(batch)
    labels_S = [np.full(len(ids), IGNORE_INDEX, dtype=np.int64) for ids in ids_S]
    weights_S = [np.ones(len(ids), dtype=np.float32) for ids in ids_S]
    sources_N, sequences_N = batch.sources.numpy(), batch.sequences.numpy()
    if batch.position_ids is None:
        depths_N = sources_N % batch.input_ids.shape[1]
    else:
        depths_N = batch.position_ids.numpy()[0, sources_N]
    targets_N = batch.targets.numpy()
    for sequence, labels in enumerate(labels_S):
        is_here_N = sequences_N == sequence
        labels[depths_N[is_here_N] + 1] = targets_N[is_here_N]
        if batch.weights is not None:
            weights_S[sequence][depths_N[is_here_N] + 1] = batch.weights.numpy()[is_here_N]
    examples = [Example(input_ids=i, labels=t) for i, t in zip(ids_S, labels_S, strict=True)]
    if batch.weights is not None:
        for example, weights in zip(examples, weights_S, strict=True):
            example["weights"] = weights
    return examples


def rebuild(
    examples: Sequence[Example], like: MicroBatch, pad_token_id: int, *, share_prefixes: bool
) -> MicroBatch:
    """A micro-batch of these sequences in the layout of another one; none make an idle one."""
    if like.attention_mask is not None:
        return pad(examples, pad_token_id)
    return build_tree(examples, share_prefixes=share_prefixes)


def recut(step: Step, token_budget: int, pad_token_id: int, *, share_prefixes: bool) -> Step:
    """The same share of a step in micro-batches of at most so many computed tokens.

    This rank's sequences are planned anew, by the rules of `plan_step`; a longer one travels alone.
    The gradient of a step is a sum over sequences, so it is the same but for rounding. Ranks may
    have unequally many micro-batches afterwards.

    Args:
        step: as it was built; its tensors are on the CPU.
        token_budget: the most tokens that a micro-batch computes.
        pad_token_id: fills rectangles.
        share_prefixes: whether trees compute once what sequences begin with alike.
    """
    examples = [each for batch in step.micro_batches for each in sequences_of(batch)]
    if not examples:
        return step
    rows = [row for group in step.rows for row in group]
    like = step.micro_batches[0]
    is_padded = like.attention_mask is not None
    is_shared = share_prefixes and not is_padded
    (plan,) = plan_step(
        [len(each["input_ids"]) for each in examples],
        1,
        token_budget,
        is_padded=is_padded,
        shared=find_prefixes([each["input_ids"] for each in examples]) if is_shared else None,
    )
    return replace(
        step,
        micro_batches=tuple(
            rebuild([examples[n] for n in group], like, pad_token_id, share_prefixes=share_prefixes)
            for group in plan
        ),
        rows=tuple(tuple(rows[n] for n in group) for group in plan) if rows else (),
    )


def _rows(batch: MicroBatch) -> list[Integers]:
    assert batch.attention_mask is not None
    ids_BT, lengths_B = batch.input_ids.numpy(), batch.attention_mask.sum(dim=1).tolist()
    return [ids_T[:length] for ids_T, length in zip(ids_BT, lengths_B, strict=True)]


def _paths(batch: MicroBatch) -> list[Integers]:
    """The tokens of each sequence of a tree, from the root to its end."""
    ids_T = batch.input_ids.numpy()[0]
    starts = np.array([segment.start for segment in batch.segments])
    paths = []
    for end in batch.ends.tolist():
        number = int(np.searchsorted(starts, end, side="right")) - 1
        parts = []
        last = end + 1
        while number >= 0:
            segment = batch.segments[number]
            parts.append(ids_T[segment.start : last])
            number = segment.parent
            if number >= 0:
                last = batch.segments[number].end
        paths.append(np.concatenate(parts[::-1]))
    return paths
