"""Micro-batches that are too large -> smaller ones of the same examples, with the same reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from luthier.batching.batch import MicroBatch, Step, naming
from luthier.batching.padded import pad
from luthier.batching.plan import plan_examples
from luthier.batching.tree import build_tree
from luthier.example import Example


def rebuild(
    examples: Sequence[Example], like: MicroBatch, pad_token_id: int, *, share_prefixes: bool
) -> MicroBatch:
    """A micro-batch of these examples in the layout of another one; none make an idle one."""
    if like.attention_mask is not None:
        built = pad(examples, pad_token_id)
    else:
        built = build_tree(examples, share_prefixes=share_prefixes)
    return built if examples else naming(built, like.token_numbers)


def split_micro_batches(
    step: Step, token_budget: int, pad_token_id: int, *, share_prefixes: bool
) -> Step:
    """The same share of a step in micro-batches of at most so many computed tokens.

    This rank's examples, on the CPU, are planned anew, by the rules of `plan_step`; a longer one
    travels alone. The gradient of a step is a sum over examples, so it is the same but for
    rounding. Ranks may have unequally many micro-batches afterwards.
    """

    def split(batches: Sequence[MicroBatch]) -> tuple[MicroBatch, ...]:
        examples = [each for batch in batches for each in batch.examples]
        if not examples:
            return tuple(batches)
        return tuple(_split(examples, batches[0], token_budget, pad_token_id, share_prefixes))

    return replace(step, micro_batches=split(step.micro_batches), measured=split(step.measured))


def _split(
    examples: Sequence[Example],
    like: MicroBatch,
    token_budget: int,
    pad_token_id: int,
    share_prefixes: bool,
) -> Iterator[MicroBatch]:
    (plan,) = plan_examples(
        examples,
        1,
        token_budget,
        is_padded=like.attention_mask is not None,
        share_prefixes=share_prefixes,
    )
    for group in plan:
        yield rebuild(
            [examples[n] for n in group], like, pad_token_id, share_prefixes=share_prefixes
        )
