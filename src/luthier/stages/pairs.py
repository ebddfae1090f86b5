"""Pairs of answers: the rows of stages that compare a better with a worse answer to a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from luthier.data.catalog import Reading
from luthier.data.check import RowError, RowProblem
from luthier.data.encode import UNLEARNED, Outcome
from luthier.data.formats.answers import detect_pairs, read_pair
from luthier.data.formats.fields import refuse_media
from luthier.data.report import Counts
from luthier.data.road import Encoding
from luthier.records import Origin, Pair
from luthier.stages.conversing import Conversing

UNUSED_MARGIN = "a margin, by which stage rm alone learns"


class Pairs(Conversing):
    """An example is a pair: the sequence of the chosen answer, then that of the rejected one.

    The prompt is learned by neither. A margin, where one is learned with, is a number of both.
    """

    record = Pair
    judges = True
    finds = staticmethod(detect_pairs)
    takes_margins: ClassVar[bool] = False  # whether the loss is made with them

    def read(self, values: Mapping[str, Any], reading: Reading, origin: Origin) -> Pair:
        refuse_media(values, reading.description)
        return read_pair(values, reading, origin)

    def passes_over(self, record: Pair, encoding: Encoding, counts: Counts) -> bool:
        if record.prompt.weight == 0:
            counts.leave_out(UNLEARNED)
            return True
        if record.margin is not None and not self.takes_margins:
            counts.remarks[UNUSED_MARGIN] = counts.remarks.get(UNUSED_MARGIN, 0) + 1
        return False

    def examples(self, records: Sequence[Pair]) -> list[Outcome]:
        outcomes = self.encoder.judge([(one.prompt, (one.chosen, one.rejected)) for one in records])
        return [
            finish_pair(one, outcome, keeps_margin=self.takes_margins)
            for one, outcome in zip(records, outcomes, strict=True)
        ]

    def prompts(self, records: Sequence[Pair]) -> list[Outcome]:
        """The prompts, and the chosen answers."""
        return self.encoder.ask(
            [replace(one.prompt, messages=(*one.prompt.messages, one.chosen)) for one in records]
        )


def finish_pair(pair: Pair, outcome: Outcome, *, keeps_margin: bool = False) -> Outcome:
    """The example of a pair, if its answers differ in what is left of them; perhaps its margin."""
    if not isinstance(outcome, list):
        return outcome
    (example,) = outcome
    chosen, rejected = example.sequences()
    if chosen == rejected:
        fix = "Raise cutoff_len, or leave the row out."
        error = RowError("", "answers that are equal once they are cut to cutoff_len", fix)
        if not example.num_cut:
            fix = "Let the answers differ, or leave the row out."
            error = RowError("", "answers that are equal as the template writes them", fix)
        return RowProblem.of(pair.origin, error)
    if pair.margin is None or not keeps_margin:
        return outcome
    return [replace(example, sequence_numbers={"margin": (pair.margin, pair.margin)})]
