"""What a run has computed, in tokens."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.batching.batch import Step


@dataclass
class Work:
    """Sums over the steps of a run.

    Attributes:
        steps: optimizer updates.
        tokens: real tokens of the examples.
        computed: tokens that went through the model; padding counts, shared prefixes once.
        learned: positions that predict a learned token.
        micro_batches: forward passes of one rank.
    """

    steps: int = 0
    tokens: int = 0
    computed: int = 0
    learned: int = 0
    micro_batches: int = 0

    def add(self, step: Step) -> None:
        """Counts this rank's share of a step."""
        self.steps += 1
        self.tokens += sum(each.num_tokens for each in step.micro_batches)
        self.computed += sum(each.num_computed for each in step.micro_batches)
        self.learned += sum(each.targets.numel() for each in step.micro_batches)
        self.micro_batches += len(step.micro_batches)

    def metrics(self) -> dict[str, float]:
        """The numbers under the names of train_results.json."""
        return {
            "train_tokens": self.tokens,
            "train_tokens_computed": self.computed,
            "train_tokens_learned": self.learned,
            "train_micro_batches_per_step": round(self.micro_batches / max(self.steps, 1), 2),
        }

    def describe(self, layout: str) -> str:
        """One line of what was done: `... 88 % of them computed, 12 % shared (tree)`."""
        share = self.computed / max(self.tokens, 1)
        rest = f"{1 - share:.0%} shared" if share <= 1 else f"{share - 1:.0%} padding"
        return (
            f"{self.tokens:,} real tokens, {self.learned:,} learned; {self.computed:,} computed "
            f"({share:.0%}, {rest}) in {self.micro_batches / max(self.steps, 1):.4g} "
            f"micro-batches a step, layout {layout}"
        ).replace("%", " %")
