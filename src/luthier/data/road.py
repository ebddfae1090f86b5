"""rows -> records -> examples: what a stage says of it, and what is counted on the way."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from luthier.data.catalog import Reading, ToolTurns
from luthier.data.check import RowError, RowProblem
from luthier.data.encode import EncodingOptions, LeftOut, Outcome
from luthier.data.reader import RowOrProblem
from luthier.data.report import Counts
from luthier.example import as_batch
from luthier.records import Origin, Record

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerBase

    from luthier.arguments.record import Arguments
    from luthier.data.catalog import DatasetDescription
    from luthier.data.pack import Packer
    from luthier.templates.chat_template import Renders

Purpose: TypeAlias = Literal["learn", "answer"]
"""Whether rows are encoded to learn from, or as prompts to answer."""


class Road:
    """The way of one kind of record from the rows of a data set to examples: half of a stage.

    Attributes:
        record: what a row of data has to be.
        keeps_order: whether the rows of a split stay in the order of the data: they are read
            together.
        predicted: what a row may be as well where it is only predicted.
        judges: whether answers are compared or weighed as they are: none is packed or split, and
            no prompt is learned.
        scores: whether the model says one number of a sequence and no tokens, by a head of its own;
            see `modeling/heads.py`.
        predicts: whether rows to evaluate are asked of as well, as `prompts` gives them.
        tool_turns: how calls and what tools answered are written.
        tokenizer: None before `fit`.
        template: None before `fit`, and of texts.
    """

    record: ClassVar[type[Record]]
    keeps_order: ClassVar[bool] = False
    predicted: ClassVar[tuple[type[Record], ...]] = ()
    judges: ClassVar[bool] = False
    scores: ClassVar[bool] = False
    tool_turns = ToolTurns()
    tokenizer: PreTrainedTokenizerBase | None = None
    template: Renders | None = None

    def __init__(self, arguments: Arguments) -> None:
        self.data = arguments.data
        self.options = EncodingOptions.of(arguments)
        training = arguments.training
        self.predicts = training.predict_with_generate or training.eval_generate_samples > 0

    def fit(self, tokenizer: PreTrainedTokenizerBase, template: Renders | None) -> None:
        """Takes what encodes rows; before that, rows can only be read.

        Args:
            tokenizer: fitted to the template.
            template: renders conversations; None for texts.
        """
        self.tokenizer, self.template = tokenizer, template

    def fingerprint(self) -> dict[str, Any]:
        """What decides about a row's examples beside the tokenizer and the row."""
        template = None if self.template is None else self.template.fingerprint()
        return {"stage": type(self).__name__, "template": template, **asdict(self.options)}

    def settings(self) -> dict[str, Any]:
        """What decides about all examples, packing too, in the words of the configuration."""
        return self.fingerprint()

    def detect(
        self, description: DatasetDescription, rows: Sequence[Any], *, needs_answer: bool = True
    ) -> tuple[DatasetDescription, str]:
        """The description with what the first rows tell, and a line that says it.

        Rows that are only asked need no answer.
        """
        return description, ""

    def reading(self, description: DatasetDescription, *, needs_answer: bool = True) -> Reading:
        """How the rows of a data set are read."""
        return Reading(description, needs_answer, self.tool_turns)

    def read(self, values: Mapping[str, Any], reading: Reading, origin: Origin) -> Any:
        """The record that a row is.

        Raises:
            RowError: if it is none.
        """
        raise NotImplementedError

    def passes_over(self, record: Any, encoding: Encoding, counts: Counts) -> bool:
        """Whether a record is right and still not encoded, which is counted."""
        return False

    def examples(self, records: Sequence[Any]) -> list[Outcome]:
        """What each record gives to learn from; the sequences of one example stay together."""
        raise NotImplementedError

    def prompts(self, records: Sequence[Any]) -> list[Outcome]:
        """The prompt of each record, and the answer's ids as labels."""
        raise NotImplementedError

    def packer(self, *, is_trained: bool) -> Packer | None:
        """How examples are put together; None where each stays for itself."""
        return None


@dataclass(frozen=True)
class Encoding:
    """How the rows of one data set become examples; it goes to other processes."""

    road: Road  # of the stage
    reading: Reading  # how rows are read; what it remarks is counted
    purpose: Purpose = "learn"  # for what

    def encode(
        self, rows: Sequence[RowOrProblem], first: int, counts: Counts
    ) -> pyarrow.RecordBatch:
        """The examples of some rows, the first of which has the number `first`."""
        was_enabled = gc.isenabled()
        gc.disable()  # rows hold no cycles, and looking for them takes a third of the time
        try:
            return self._encode(rows, first, counts)
        finally:
            if was_enabled:
                gc.enable()

    def _encode(
        self, rows: Sequence[RowOrProblem], first: int, counts: Counts
    ) -> pyarrow.RecordBatch:
        self.reading.remarks.clear()
        records, problems = read_records(rows, self.road, self.reading)
        counts.remarks = dict(Counter(counts.remarks) + self.reading.remarks)
        counts.num_read += len(rows)
        for problem in problems:
            counts.skip(problem)
        records = [pair for pair in records if not self.road.passes_over(pair[1], self, counts)]
        encode = self.road.examples if self.purpose == "learn" else self.road.prompts
        outcomes = encode([record for _, record in records])
        kept, origins, numbers = [], [], []
        for (at, record), outcome in zip(records, outcomes, strict=True):
            if isinstance(outcome, RowProblem):
                counts.skip(outcome)
            elif isinstance(outcome, LeftOut):
                counts.leave_out(outcome.reason)
                counts.longest = max(counts.longest, outcome.num_tokens)
            else:
                is_scored, is_asked = self.road.scores, self.purpose == "answer"
                counts.keep(outcome, is_asked=is_asked and not is_scored, is_scored=is_scored)
                kept += outcome
                origins += [str(record.origin or "")] * len(outcome)
                numbers += [first + at] * len(outcome)
        return as_batch(kept, origins, numbers)


def read_records(
    rows: Sequence[RowOrProblem], road: Road, reading: Reading
) -> tuple[list[tuple[int, Any]], list[RowProblem]]:
    """The records that rows are, with their numbers, and the rows that are none."""
    records: list[tuple[int, Any]] = []
    problems: list[RowProblem] = []
    for number, row in enumerate(rows):
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        try:
            if not isinstance(row.values, Mapping):
                raise RowError("", "no object", 'Each row is an object: {"column": value, ...}.')
            records.append((number, road.read(row.values, reading, row.origin)))
        except RowError as error:
            problems.append(RowProblem.of(row.origin, error, row.values))
    return records, problems
