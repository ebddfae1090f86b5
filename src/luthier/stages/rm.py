"""Reward models: a score of each answer, higher for the chosen one of a pair."""

# S sequences, P pairs

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.arguments.record import Arguments
from luthier.data.catalog import FORMATS, Reading
from luthier.data.encode import Encoder, Outcome
from luthier.data.formats.detect import detect_format
from luthier.data.formats.fields import refuse_media
from luthier.data.report import Counts
from luthier.data.road import Encoding
from luthier.records import Conversation, Message, Origin, Pair
from luthier.stages.pairs import Pairs
from luthier.stages.stage import STAGES, Loss

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from luthier.batching.batch import MicroBatch
    from luthier.data.catalog import DatasetDescription
    from luthier.templates.chat_template import Renders

ONE_ANSWER = "one answer, only scored"

MARGIN = "margin"
"""The number of a sequence by which the chosen answer of its pair is to score more."""


@STAGES.register("rm")
class RewardModeling(Pairs):
    """Learns to score the last token of an answer; the unit is a pair."""

    train_metrics = ("accuracy", "margin", "mean_reward", "min_reward", "max_reward")
    eval_metrics = train_metrics
    predicted = (Conversation,)
    scores = takes_margins = True

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.predicts = arguments.training.do_predict
        self.centering = arguments.finetuning.center_rewards_coefficient

    def fit(self, tokenizer: PreTrainedTokenizerBase, template: Renders | None) -> None:
        from luthier.modeling.heads import choose_pad

        super().fit(tokenizer, template)
        assert template is not None
        ask, answer = Conversation((Message("user", "a"),)), Message("assistant", "b")
        whole = Encoder(tokenizer, template, replace(self.options, cutoff_len=sys.maxsize))
        (outcome,) = whole.judge([(ask, (answer,))])
        ends = [each.input_ids[-1] for each in outcome] if isinstance(outcome, list) else []
        choose_pad(tokenizer, ends)

    def detect(
        self, description: DatasetDescription, rows: Sequence[Any], *, needs_answer: bool = True
    ) -> tuple[DatasetDescription, str]:
        is_pair = any("chosen" in row for row in rows if isinstance(row, Mapping))
        if self.predicts and not is_pair and description.formatting is None and rows:
            return detect_format(description, rows)
        return super().detect(description, rows, needs_answer=needs_answer)

    def read(self, values: Mapping[str, Any], reading: Reading, origin: Origin) -> Any:
        """A pair; where rows are only scored, and are none, a conversation with its answer."""
        if reading.needs_answer or reading.description.ranking:
            return super().read(values, reading, origin)
        refuse_media(values, reading.description)
        read = FORMATS.get(reading.description.formatting or "alpaca")
        return read(values, replace(reading, needs_answer=True), origin)

    def passes_over(self, record: Any, encoding: Encoding, counts: Counts) -> bool:
        if isinstance(record, Pair):
            return super().passes_over(record, encoding, counts)
        is_alone = encoding.purpose == "learn"
        if is_alone:
            counts.remarks[ONE_ANSWER] = counts.remarks.get(ONE_ANSWER, 0) + 1
        return is_alone

    def prompts(self, records: Sequence[Any]) -> list[Outcome]:
        """The sequences to score: both of a pair, or that of the one answer."""
        pairs = iter(self.examples([one for one in records if isinstance(one, Pair)]))
        alone = iter(
            self.encoder.judge(
                [
                    (replace(one, messages=one.messages[:-1]), one.messages[-1:])
                    for one in records
                    if not isinstance(one, Pair)
                ]
            )
        )
        return [next(pairs if isinstance(one, Pair) else alone) for one in records]

    def measure_sequences(self, model: Any, batch: MicroBatch) -> dict[str, Tensor]:
        """The scores, and the margins where rows have some."""
        from luthier.modeling.reads import read_values

        margins = batch.sequence_numbers
        found = {MARGIN: margins[MARGIN]} if MARGIN in margins else {}
        return {"score": read_values(model, batch), **found}

    def step_loss(self, numbers: Mapping[str, Tensor]) -> Loss:
        """The sum over pairs, each chosen sequence before its rejected one."""
        from luthier.losses.reward import bradley_terry, uncentered

        scores_S = numbers["score"]
        chosen_P, rejected_P = scores_S[::2], scores_S[1::2]
        margins_P = None
        if MARGIN in numbers:
            margins_P = numbers[MARGIN][::2].nan_to_num(0.0)
        losses_P = bradley_terry(chosen_P, rejected_P, margins_P)
        if self.centering is not None:
            losses_P = losses_P + self.centering * uncentered(chosen_P, rejected_P)
        seen_S = scores_S.detach()
        ahead_P = seen_S[::2] - seen_S[1::2]
        return Loss(
            losses_P.sum(),
            {
                "accuracy": ((ahead_P > 0).sum(), len(ahead_P)),
                "margin": (ahead_P.sum(), len(ahead_P)),
                "mean_reward": (seen_S.sum(), len(seen_S)),
                "min_reward": (seen_S.min(), 1),
                "max_reward": (seen_S.max(), 1),
            },
        )
