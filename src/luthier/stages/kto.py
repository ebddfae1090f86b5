"""Kahneman-Tversky optimisation: answers that were marked as wanted or unwanted, one at a time."""

# S sequences, N reads

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.arguments.record import Arguments
from luthier.errors import DataError
from luthier.example import OF_SEQUENCES, REFERENCE
from luthier.stages.marked import LABEL, Marked
from luthier.stages.stage import STAGES, Loss, Sum

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.arguments.finetuning import FinetuningArguments
    from luthier.batching.batch import MicroBatch

NAME = f"{OF_SEQUENCES}{LABEL}"
"""The column of the marks."""

BALANCED = (1.0, 4 / 3)
"""Between these the paper (equation 8) wants the weight of all wanted answers to that of all
unwanted ones."""


@STAGES.register("kto")
class KahnemanTversky(Marked):
    """A wanted answer is to become likelier than by the reference, an unwanted one less likely.

    The loss of a row is that of `losses/marked.py`. Its z0 is the mean log-ratio of prompts with
    other rows' answers (the KL to the reference, as far as it is seen), over the step of all ranks
    or over an evaluation set, clamped at 0 and without gradient; `apo_zero_unpaired` has none.
    `pref_ftx` adds so much of the mean negative log-likelihood of a wanted answer's tokens to its
    row. The unit is a row.

    Metrics are means over the rows of a kind, `logits/...` over the vocabulary and their tokens;
    `rewards/...` is beta times the log-ratio.
    """

    draws_dropout = False
    derived_metrics = ("rewards/margins",)

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.knobs = arguments.finetuning
        self.needs_reference = self.reads_reference(self.knobs)
        self.measures_first = self.mismatches_answers = self.knobs.kto_loss == "kto"
        sides = "chosen", "rejected"
        names = [f"{of}/{side}" for of in ("rewards", "logps", "logits") for side in sides]
        names += ["kl"] if self.measures_first else []
        self.train_metrics = self.eval_metrics = tuple(names)

    @classmethod
    def reads_reference(cls, knobs: FinetuningArguments) -> bool:
        return True

    def measure(self, model: Any, batch: MicroBatch) -> Mapping[str, Sum]:
        """The log-ratios of prompts with other rows' answers."""
        from luthier.modeling.reads import read_logps

        ratios_N = read_logps(model, batch).logps_N - batch.token_numbers[REFERENCE]
        return {"kl": (ratios_N.sum(), len(batch.examples))}

    def measure_sequences(self, model: Any, batch: MicroBatch) -> dict[str, Tensor]:
        from luthier.modeling.reads import sequence_logps, sum_by_sequence

        read = sequence_logps(model, batch, with_logits=True)
        like_S = read.sums_S.detach()
        return {
            "logps": read.sums_S,
            "lengths": read.counts_S,
            "reference": sum_by_sequence(batch, batch.token_numbers[REFERENCE].to(like_S)),
            LABEL: batch.sequence_numbers.get(LABEL, like_S),
            "kl": like_S.new_full(like_S.shape, batch.step_numbers.get("kl", 0.0)),
            **({} if read.logits_S is None else {"logits": read.logits_S}),
        }

    def step_loss(self, numbers: Mapping[str, Tensor]) -> Loss:
        from luthier.losses.marked import kahneman_tversky

        wanted_S, logps_S = numbers[LABEL], numbers["logps"]
        ratios_S, z0_S = logps_S - numbers["reference"], numbers["kl"].clamp(min=0)
        losses_S = kahneman_tversky(ratios_S, wanted_S, z0_S, self.knobs)
        losses_S = losses_S - self.knobs.pref_ftx * wanted_S * logps_S / numbers["lengths"]

        seen: dict[str, Sum] = {"kl": (z0_S.sum(), len(z0_S))} if self.measures_first else {}
        for name, of_kind_S in (("chosen", wanted_S), ("rejected", 1 - wanted_S)):
            count = of_kind_S.sum()
            reward = (self.knobs.pref_beta * ratios_S.detach() * of_kind_S).sum()
            seen[f"rewards/{name}"] = reward, count
            seen[f"logps/{name}"] = (logps_S.detach() * of_kind_S).sum(), count
            if "logits" in numbers:
                tokens = (numbers["lengths"] * of_kind_S).sum()
                seen[f"logits/{name}"] = (numbers["logits"] * of_kind_S).sum(), tokens
        return Loss(losses_S.sum(), seen)

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        names = "rewards/chosen", "rewards/rejected"
        if not all(name in means for name in names):  # rows of one kind alone
            return {}
        return {"rewards/margins": means[names[0]] - means[names[1]]}

    def look(self, train: Any) -> None:
        """Says how the two kinds are balanced, and the weights that would balance them.

        Raises:
            DataError: when there is a single row.
        """
        if train.num_examples is None:
            return
        if len(train) < 2 and self.mismatches_answers:
            raise DataError(
                "stage: kto compares the answers of several rows, and there is 1 to train on. Add "
                "more, or set kto_loss: apo_zero_unpaired, which compares none."
            )
        labels = train.table.select_columns([NAME]).with_format("arrow")[:].column(0)
        wanted = int(sum(labels.combine_chunks().flatten().to_pylist()))
        unwanted = len(train) - wanted
        said = f"{wanted:,} wanted answers, {unwanted:,} unwanted"
        if not (wanted and unwanted):
            console.warn(f"{said}: all rows pull one way; chosen and rejected have no margin")
            return
        least, most = BALANCED
        of_wanted, of_unwanted = self.knobs.kto_chosen_weight, self.knobs.kto_rejected_weight
        share = of_wanted * wanted / (of_unwanted * unwanted)
        if least <= round(share, 2) <= round(most, 2):
            console.info(f"{said}, weighed {share:.2f} to 1")
            return
        console.warn(
            f"{said}, weighed {share:.2f} to 1 where the KTO paper recommends 1 to 1.33: set "
            f"either kto_chosen_weight between {of_wanted * least / share:.2f} and "
            f"{of_wanted * most / share:.2f}, or kto_rejected_weight between "
            f"{of_unwanted * share / most:.2f} and {of_unwanted * share / least:.2f}"
        )
