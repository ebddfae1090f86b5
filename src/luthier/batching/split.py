"""Micro-batches that are too large -> smaller ones of the same examples, with the same reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from luthier.batching.batch import MicroBatch, Step, naming
from luthier.batching.padded import pad
from luthier.batching.plan import plan_examples
from luthier.batching.tree import build_tree
from luthier.example import Example


def build(
    examples: Sequence[Example],
    names: Iterable[str],
    pad_token_id: int,
    *,
    is_padded: bool,
    share_prefixes: bool,
) -> MicroBatch:
    """A micro-batch of these examples; of none an idle one with these names of numbers."""
    if is_padded:
        built = pad(examples, pad_token_id)
    else:
        built = build_tree(examples, share_prefixes=share_prefixes)
    return built if examples else naming(built, names)


def rebuild(
    examples: Sequence[Example], like: MicroBatch, pad_token_id: int, *, share_prefixes: bool
) -> MicroBatch:
    """A micro-batch of these examples in the layout of another one; none make an idle one."""
    is_padded, names = like.attention_mask is not None, like.token_numbers
    return build(examples, names, pad_token_id, is_padded=is_padded, share_prefixes=share_prefixes)


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
        like, shares = batches[0], share_prefixes
        is_padded = like.attention_mask is not None
        (plan,) = plan_examples(
            examples, 1, token_budget, is_padded=is_padded, share_prefixes=shares
        )
        groups = ([examples[n] for n in group] for group in plan)
        return tuple(rebuild(each, like, pad_token_id, share_prefixes=shares) for each in groups)

    return replace(step, micro_batches=split(step.micro_batches), measured=split(step.measured))
