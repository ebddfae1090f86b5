"""Marked answers: the rows of stages that learn from single answers, wanted or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.data.catalog import Reading
from luthier.data.encode import UNLEARNED, Outcome
from luthier.data.formats.answers import detect_marked, read_marked
from luthier.data.formats.fields import refuse_media
from luthier.data.report import Counts
from luthier.data.road import Encoding
from luthier.records import Conversation, Feedback, Message, Origin, Pair
from luthier.stages.conversing import Conversing
from luthier.stages.pairs import UNUSED_MARGIN, finish_pair

LABEL = "label"
"""The number of a sequence that says whether it is wanted: 1 or 0."""

FROM_PAIRS = "pairs, each read as a wanted and an unwanted answer"


class Marked(Conversing):
    """An example is one answer behind its prompt, with its mark as the number `label`.

    A pair gives two examples, the chosen answer as a wanted one and the rejected as an unwanted.
    """

    record = Feedback
    judges = True
    finds = staticmethod(detect_marked)

    def read(self, values: Mapping[str, Any], reading: Reading, origin: Origin) -> Feedback | Pair:
        refuse_media(values, reading.description)
        return read_marked(values, reading, origin)

    def passes_over(self, record: Feedback | Pair, encoding: Encoding, counts: Counts) -> bool:
        conversation = record.prompt if isinstance(record, Pair) else record.conversation
        if conversation.weight == 0:
            counts.leave_out(UNLEARNED)
            return True
        if isinstance(record, Pair):
            counts.remarks[FROM_PAIRS] = counts.remarks.get(FROM_PAIRS, 0) + 1
            if record.margin is not None:
                counts.remarks[UNUSED_MARGIN] = counts.remarks.get(UNUSED_MARGIN, 0) + 1
        return False

    def examples(self, records: Sequence[Feedback | Pair]) -> list[Outcome]:
        rows = [_answered(one) for one in records]
        outcomes = self.encoder.judge([(prompt, answers) for prompt, answers, _ in rows])
        made: list[Outcome] = []
        for record, outcome, (_, _, labels) in zip(records, outcomes, rows, strict=True):
            if isinstance(record, Pair):
                outcome = finish_pair(record, outcome)
            if isinstance(outcome, list):
                (example,) = outcome
                outcome = [
                    replace(each, num_units=1, sequence_numbers={LABEL: (label,)}, num_cut=cut)
                    for each, label, cut in zip(
                        example.each_sequence(), labels, (example.num_cut, 0), strict=False
                    )
                ]
            made.append(outcome)
        return made

    def prompts(self, records: Sequence[Feedback | Pair]) -> list[Outcome]:
        """The prompts, and the answer of each, of a pair the chosen one."""
        rows = [_answered(one) for one in records]
        return self.encoder.ask(
            [
                replace(prompt, messages=(*prompt.messages, answers[0]))
                for prompt, answers, _ in rows
            ]
        )


def _answered(
    record: Feedback | Pair,
) -> tuple[Conversation, tuple[Message, ...], tuple[float, ...]]:
    if isinstance(record, Pair):
        return record.prompt, (record.chosen, record.rejected), (1.0, 0.0)
    *asked, answer = record.conversation.messages
    prompt = replace(record.conversation, messages=tuple(asked))
    return prompt, (answer,), (float(record.is_desirable),)
