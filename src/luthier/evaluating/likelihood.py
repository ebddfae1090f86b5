"""How likely answers are behind their prompts, what they begin with alike computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from luthier.arguments.record import Arguments
from luthier.batching.plan import plan_examples
from luthier.batching.split import build
from luthier.errors import OutOfMemory
from luthier.example import Example
from luthier.fused.fuse import fuse, unfuse
from luthier.modeling.device import is_out_of_memory, release
from luthier.modeling.dtypes import autocasting
from luthier.modeling.reads import count_by_sequence, read_logps, sum_by_sequence
from luthier.training.layout import PROBE_ROWS, choose_layout

TOKENS = 8192
"""Tokens that are computed together, unless `tokens_per_micro_batch` says otherwise."""

TOGETHER = 64
"""Examples that are planned together; more would find few further beginnings alike."""


class Said(NamedTuple):
    """What a model says of the learned tokens of a sequence."""

    logp: float  # summed
    is_greedy: bool  # whether each of them is the likeliest


class Likelihood:
    """Log-probabilities of the learned tokens of sequences, by the way that is right and fastest.

    Args:
        model: on its device, not learning.
        arguments: `layout` and `tokens_per_micro_batch` count.
        pad_token_id: fills padded batches.
        rows: some examples, by whose beginnings the ways are compared.
    """

    def __init__(
        self, model: Any, arguments: Arguments, pad_token_id: int, rows: Sequence[Example]
    ) -> None:
        self.model, self.pad_token_id = model, pad_token_id
        self.layout = choose_layout(
            model,
            arguments,
            rows[:PROBE_ROWS],
            pad_token_id,
            fuse=fuse,
            unfuse=unfuse,
            autocast=lambda: autocasting(model),
            dtype=model.dtype,
        )
        self.budget = arguments.training.tokens_per_micro_batch or TOKENS
        self.num_tokens = self.num_computed = 0

    def read(self, examples: Sequence[Example]) -> Iterator[list[Said]]:
        """For each example, in order, what is said of each of its sequences.

        Raises:
            OutOfMemory: if memory is too small for a single one.
        """
        for start in range(0, len(examples), TOGETHER):
            window = [
                replace(each, row=row)
                for row, each in enumerate(examples[start : start + TOGETHER])
            ]
            how = {
                "is_padded": self.layout.name == "padded",
                "share_prefixes": self.layout.shares_prefixes,
            }
            (plan,) = plan_examples(window, 1, self.budget, **how)
            found: dict[int, list[Said]] = {}
            for rows in plan:
                found |= self._compute([window[row] for row in rows], how)
            yield from (found[row] for row in range(len(window)))

    def _compute(self, examples: list[Example], how: dict[str, bool]) -> dict[int, list[Said]]:
        batch = build(examples, (), self.pad_token_id, **how).to(self.model.device)
        try:
            with torch.no_grad(), autocasting(self.model):
                found = read_logps(self.model, batch, with_accuracy=True)
            assert found.correct is not None
            counts = count_by_sequence(batch).tolist()
            sums = sum_by_sequence(batch, found.logps_N).tolist()
            right = sum_by_sequence(batch, found.correct.float()).tolist()
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            if len(examples) == 1:
                raise OutOfMemory(
                    f"memory is too small for a question of {batch.num_tokens:,} tokens. Set "
                    "n_shot lower, or choose a smaller model."
                ) from problem
        else:
            self.num_tokens += batch.num_tokens
            self.num_computed += batch.num_computed
            told = zip(sums, right, counts, strict=True)
            said = iter([Said(logp, num == count) for logp, num, count in told])
            return {
                each.row: [next(said) for _ in each.sequence_lengths] for each in batch.examples
            }
        release(self.model.device)
        half = len(examples) // 2
        return self._compute(examples[:half], how) | self._compute(examples[half:], how)
