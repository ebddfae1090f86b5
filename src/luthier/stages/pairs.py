"""Pairs of answers: the rows of stages that compare a better with a worse answer to a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.data.catalog import Reading
from luthier.data.check import RowError, RowProblem
from luthier.data.encode import UNLEARNED, Outcome
from luthier.data.formats.answers import detect_pairs, read_pair
from luthier.data.formats.fields import refuse_media
from luthier.data.report import Counts
from luthier.data.road import Encoding
from luthier.records import Origin, Pair
from luthier.stages.conversing import Conversing

if TYPE_CHECKING:
    from luthier.data.catalog import DatasetDescription


class Pairs(Conversing):
    """An example is a pair: the sequence of the chosen answer, then that of the rejected one.

    The prompt is learned by neither. Rows that have a margin give it to both as a number.
    """

    record = Pair

    def detect(
        self, description: DatasetDescription, rows: Sequence[Any]
    ) -> tuple[DatasetDescription, str]:
        if description.formatting is not None or not rows:
            return description, ""
        return detect_pairs(description, rows)

    def read(self, values: Mapping[str, Any], reading: Reading, origin: Origin) -> Pair:
        refuse_media(values, reading.description)
        return read_pair(values, reading, origin)

    def passes_over(self, record: Pair, encoding: Encoding, counts: Counts) -> bool:
        if record.prompt.weight != 0:
            return False
        counts.leave_out(UNLEARNED)
        return True

    def examples(self, records: Sequence[Pair]) -> list[Outcome]:
        outcomes = self.encoder.judge([(one.prompt, (one.chosen, one.rejected)) for one in records])
        return [finish_pair(*each) for each in zip(records, outcomes, strict=True)]

    def prompts(self, records: Sequence[Pair]) -> list[Outcome]:
        """The prompts, and the chosen answers."""
        return self.encoder.ask(
            [replace(one.prompt, messages=(*one.prompt.messages, one.chosen)) for one in records]
        )


def finish_pair(pair: Pair, outcome: Outcome) -> Outcome:
    """The example of a pair with its margin, if its answers differ in what is left of them."""
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
    if pair.margin is None:
        return outcome
    return [replace(example, sequence_numbers={"margin": (pair.margin, pair.margin)})]
