"""Direct preference optimisation: of two answers to a prompt the chosen one becomes the likelier.

Stage of every loss of `losses/pairs.py`, with a reference and without.
"""

# S sequences, two for each of P pairs, N reads

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luthier.arguments.choices import PAIR_LOSSES
from luthier.arguments.record import Arguments
from luthier.example import REFERENCE
from luthier.stages.pairs import Pairs
from luthier.stages.stage import STAGES, Loss, Sum

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.arguments.finetuning import FinetuningArguments
    from luthier.batching.batch import MicroBatch

SIDES = ("chosen", "rejected")


@STAGES.register("dpo")
class DirectPreference(Pairs):
    """The sum of the losses of pairs; the unit is a pair.

    With `ld_alpha` the tokens of an answer beyond the length of the other one count so much, of the
    model as of its reference (LD-DPO, Liu et al. 2024, arXiv 2409.06411), so that all rewards are 0
    before anything is learned.

    Metrics are means over pairs: `rewards/...` beta times the log-ratios, `logps/...` the summed
    log-probabilities (averaged by length, both, where no reference is read), `rewards/accuracies`
    the share of pairs whose chosen answer has the higher reward. `logits/...` is a mean over the
    vocabulary and the tokens of answers; there is none where a model bounds its logits.
    """

    draws_dropout = False

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.knobs = arguments.finetuning
        losses = [PAIR_LOSSES.get(name) for name in self.knobs.pref_loss]
        shifts = self.knobs.pref_bco_weight > 0
        self.needs_reference = self.reads_reference(self.knobs)
        self.couples_sequences = any(each.couples for each in losses)
        self.measures_first = any(each.averages_step for each in losses)
        self.remembers = ("rewards/chosen", "rewards/rejected") if shifts else ()
        self.is_orpo = "orpo" in self.knobs.pref_loss
        self.train_metrics = self.eval_metrics = (
            *(f"rewards/{each}" for each in (*SIDES, "accuracies", "margins")),
            *(f"{kind}/{each}" for kind in ("logps", "logits") for each in SIDES),
            *(("sft_loss", "odds_ratio_loss") if self.is_orpo else ()),
        )

    @classmethod
    def reads_reference(cls, knobs: FinetuningArguments) -> bool:
        known = [PAIR_LOSSES.get(name) for name in knobs.pref_loss if name in PAIR_LOSSES]
        return knobs.pref_bco_weight > 0 or any(each.needs_reference for each in known)

    def measure(self, model: Any, batch: MicroBatch) -> Mapping[str, Sum]:
        """The tokens of chosen answers; nothing is computed for it."""
        from luthier.modeling.reads import count_by_sequence

        return {"chosen_tokens": (count_by_sequence(batch)[::2].sum(), len(batch.examples))}

    def measure_sequences(self, model: Any, batch: MicroBatch) -> dict[str, Tensor]:
        from luthier.modeling.reads import sequence_logps, sum_by_sequence

        read = sequence_logps(model, batch, with_logits=True)
        weights_N = self._weigh_tokens(batch, read.counts_S)
        numbers = {"logps": read.sums_S, "lengths": read.counts_S}
        if weights_N is not None:
            numbers["logps"] = sum_by_sequence(batch, weights_N * read.logps_N)
        if self.needs_reference:
            reference_N = batch.token_numbers[REFERENCE].to(read.logps_N)
            weighted_N = reference_N if weights_N is None else weights_N * reference_N
            numbers["reference"] = sum_by_sequence(batch, weighted_N)
        if read.logits_S is not None:
            numbers["logits"] = read.logits_S
        known, of_step = batch.step_numbers, {}
        if self.measures_first:
            of_step["chosen_tokens"] = known["chosen_tokens"] if batch.examples else 1.0
        if self.remembers:
            of_step["mean_reward"] = sum(known.get(name, 0.0) for name in self.remembers) / 2
        like_S = read.sums_S.detach()
        return numbers | {name: like_S.new_full(like_S.shape, n) for name, n in of_step.items()}

    def _weigh_tokens(self, batch: MicroBatch, counts_S: Tensor) -> Tensor | None:
        """(N,): 1, or `ld_alpha` where the other answer of the pair has ended."""
        from luthier.modeling.reads import places_in_sequence

        if self.knobs.ld_alpha is None:
            return None
        empty = counts_S.new_zeros(len(counts_S))  # no fewer sequences than examples
        shortest = empty.scatter_reduce(0, batch.owners, counts_S, "amin", include_self=False)
        is_beyond_N = places_in_sequence(batch) >= shortest[batch.owners][batch.sequences]
        weights_N: Tensor = 1.0 - (1.0 - self.knobs.ld_alpha) * is_beyond_N.to(counts_S)
        return weights_N

    def step_loss(self, numbers: Mapping[str, Tensor]) -> Loss:
        from luthier.losses.pairs import Answers, odds_ratio, preference_losses, rewards

        pairs = {
            name: (numbers_S if name == "logps" else numbers_S.detach()).view(-1, 2)
            for name, numbers_S in numbers.items()
        }
        of_step = {
            name: pairs[name][0, 0] for name in ("chosen_tokens", "mean_reward") if name in pairs
        }
        logps_P2, lengths_P2 = pairs["logps"], pairs["lengths"]
        answers = Answers(logps_P2, lengths_P2, pairs.get("reference"), **of_step)
        total = preference_losses(answers, self.knobs).sum()

        count = len(logps_P2)
        rewards_P2 = rewards(answers, self.knobs)
        told_P2 = (logps_P2 if self.needs_reference else answers.averages_P2).detach()
        margins_P = rewards_P2[:, 0] - rewards_P2[:, 1]
        seen: dict[str, Sum] = {
            "rewards/accuracies": ((margins_P > 0).sum(), count),
            "rewards/margins": (margins_P.sum(), count),
        }
        for side, name in enumerate(SIDES):
            seen[f"rewards/{name}"] = (rewards_P2[:, side].sum(), count)
            seen[f"logps/{name}"] = (told_P2[:, side].sum(), count)
            if "logits" in pairs:
                seen[f"logits/{name}"] = pairs["logits"][:, side].sum(), lengths_P2[:, side].sum()
        if self.is_orpo:
            seen["sft_loss"] = (-answers.averages_P2[:, 0].detach().sum(), count)
            seen["odds_ratio_loss"] = (odds_ratio(answers).detach().sum(), count)
        return Loss(total, seen)
