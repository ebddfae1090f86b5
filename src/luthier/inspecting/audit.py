"""data sets -> what is wrong with their rows, by the rules and readers of training."""

from __future__ import annotations

import codecs
import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier.data.catalog import OPENAI_COLUMNS, Columns, load_catalog
from luthier.data.check import RowError, RowProblem, show_value
from luthier.data.encode import OVERLONG, UNLEARNED, Encoder, LeftOut, Outcome
from luthier.data.formats.messages import KEYS
from luthier.data.reader import Row
from luthier.data.reading import Batch, DatasetReader
from luthier.errors import DataError, suggest
from luthier.example import Example, count_learned
from luthier.inspecting.report import AuditReport, Findings, Lengths, SetAudit
from luthier.inspecting.view import answers_of
from luthier.records import Conversation, Feedback, Origin, Pair, Text
from luthier.stages.conversing import Conversing
from luthier.stages.pt import EMPTY, PreTraining, TextEncoder
from luthier.stages.stage import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.arguments.record import Arguments

UNCUT = 1 << 40
"""A cutoff_len that cuts nothing."""

MOST_COLUMNS = 50
"""How many columns that are not read are told apart."""


class Oddity(NamedTuple):
    """Something in a text that seldom belongs there, and that training takes as it is."""

    reason: str
    pattern: re.Pattern[str]
    fix: str


ODDITIES = (
    Oddity(
        "a placeholder left in",
        re.compile(r"\{\{ ?[A-Za-z_][\w .-]{0,40} ?\}\}"),
        "Put the name or the value there that it stands for.",
    ),
    Oddity("a NUL character", re.compile("\0"), "Take it away; texts do not hold it."),
    Oddity(
        "control characters",
        re.compile("[\x01-\x08\x0b\x0e-\x1f\x7f]"),
        "Take them away; only tabs and line breaks belong in a text.",
    ),
    Oddity(
        "replacement characters",
        re.compile("\ufffd"),
        "Letters were lost when the text was decoded; take it from its source again.",
    ),
    Oddity(
        "a byte-order mark in a text",
        re.compile("\ufeff"),
        "Take it away; it comes from a file that was read as plain text.",
    ),
    Oddity(
        "UTF-8 that was read as Latin-1",
        re.compile("â€[™œ\x9d“”¦]|Ã[¤¶¼Ÿ©¨ª§±³]|Â[ °»«]"),
        "Decode the source as UTF-8.",
    ),
)


ELSEWHERE = (
    ("a row to evaluate on that is trained on, too", "Take it out of one of the two."),
    (
        "a prompt to evaluate on that is trained on, too",
        "Take it out of one of the two, unless the answers are meant to differ.",
    ),
)
"""A row that stands among those to train on, and one whose prompt does: reason and mend."""

HERE = (
    ("a row that stands twice", "Keep one; with val_size, copies may stand on both sides."),
    ("a prompt with different answers", "Keep the better answer, unless both are meant."),
)
"""The same among the rows of one use; answers that are judged are meant to differ."""

TURNED = ("a row that stands again with its judgement turned round", "Keep the right one.")
"""A pair whose answers have changed places, or an answer with the other mark."""


def find_oddities(
    values: Mapping[str, Any], columns: Sequence[str], oddities: Sequence[Oddity]
) -> Iterator[RowError]:
    """The first text of a row, anywhere below `columns`, for each oddity that is in it."""
    waiting = list(oddities)
    stack: list[tuple[str, Any]] = [(column, values.get(column)) for column in reversed(columns)]
    while stack and waiting:
        field, value = stack.pop()
        if isinstance(value, list):
            stack += [(f"{field}[{at}]", one) for at, one in enumerate(value)][::-1]
        elif isinstance(value, Mapping):
            stack += [(f"{field}.{key}", one) for key, one in value.items()][::-1]
        elif isinstance(value, str):
            for oddity in tuple(waiting):
                if found := oddity.pattern.search(value):
                    waiting.remove(oddity)
                    yield RowError(field, oddity.reason, oddity.fix, f" ({found[0]!r})")


class Repeats:
    """The conversations and texts seen so far, by a hash of what they say, and those `before`."""

    def __init__(self, before: Repeats | None = None) -> None:
        self.before = before
        self._rows: dict[int, Origin | None] = {}
        self._prompts: dict[int, Origin | None] = {}

    def add(self, record: Conversation | Text | Pair | Feedback) -> RowError | None:
        """Remembers one, and says where it, or its prompt, stood before."""
        if isinstance(record, Text):  # without a prompt
            row, turned, prompt = hash(record.content), None, None
        else:
            conversation = answers_of(record)[0][1]
            *asked, answer = conversation.messages
            head = hash((conversation.system, conversation.tools, *asked))
            row, turned, prompt = hash((head, answer)), None, head
            if isinstance(record, Pair):
                row = hash((head, answer, record.rejected))
                turned = hash((head, record.rejected, answer))
            elif isinstance(record, Feedback):
                row = hash((head, answer, record.is_desirable))
                turned = hash((head, answer, not record.is_desirable))
        found = self._find(row, turned, prompt, is_judged=turned is not None)
        self._rows.setdefault(row, record.origin)
        if prompt is not None:
            self._prompts.setdefault(prompt, record.origin)
        return found

    def _find(
        self, row: int, turned: int | None, prompt: int | None, *, is_judged: bool
    ) -> RowError | None:
        for seen, of_row, of_prompt in ((self.before, *ELSEWHERE), (self, *HERE)):
            if seen is None:
                continue
            if row in seen._rows:
                return RowError("", *of_row, f" (the same as {seen._rows[row]})")
            if turned in seen._rows:
                return RowError("", *TURNED, f" (as in {seen._rows[turned]})")
            if prompt in seen._prompts and not (is_judged and seen is self):
                return RowError("", *of_prompt, f" (as in {seen._prompts[prompt]})")
        return None


def audit(arguments: Arguments, stage: Stage, most: int | None) -> AuditReport:
    """Looks at every row of the named data sets; at `most` so many findings of a kind are kept.

    Nothing is said about tokens where the stage has no tokenizer.
    """
    data = arguments.data
    encoder: Encoder | TextEncoder | None = None
    if stage.tokenizer is not None and isinstance(stage, (PreTraining, Conversing)):
        encoder = stage.encoder
    report = AuditReport(Findings(most), data.max_bad_rows, is_encoded=encoder is not None)
    catalog = load_catalog(data.dataset_dir, allow_outside=data.allow_outside)
    special: list[str] = []
    measure: Any = None
    if isinstance(encoder, TextEncoder):
        special = [] if encoder.splits_special else _special(encoder.tokenizer)
    elif encoder is not None:
        uncut = replace(encoder.options, cutoff_len=UNCUT, on_overlong="truncate")
        measure = copy.copy(stage)  # encodes rows whole
        measure.encoder = Encoder(encoder.tokenizer, encoder.template, uncut)
        if not encoder.options.split_special_tokens:
            special = _special(encoder.tokenizer, *encoder.template.stop_words)
    oddities = [*ODDITIES]
    if special:
        fix = "The tokenizer reads it as the token, not as its letters: take it away, or set "
        pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        fix += "split_special_tokens: true."
        oddities.append(Oddity("a special token in a text", pattern, fix))
    trained = Repeats()
    is_cut = arguments.finetuning.stage != "pt"
    for use, names, repeats in (
        ("train", data.dataset, trained),
        ("eval", data.eval_dataset, Repeats(trained)),
    ):
        for name in names:
            found = SetAudit(name, use, Lengths(data.cutoff_len if is_cut else None))
            report.sets.append(found)
            try:
                reader = DatasetReader(arguments, catalog, name, stage, use == "eval")
                _Look(found, report.findings, reader, stage, measure, repeats, oddities).run()
            except DataError as error:
                problem = RowProblem(name, "", "the data set cannot be read", "", f": {error}")
                report.findings.add(name, problem, is_error=True)
                found.is_refused = True
    return report


def _count_learned(examples: Sequence[Example]) -> int:
    return sum(count_learned(one.labels, one.lengths) for one in examples)


def _special(tokenizer: PreTrainedTokenizerBase, *stop_words: str) -> list[str]:
    """Tokens whose text, wherever it stands, is read as one token that is no word."""
    added = tokenizer.added_tokens_decoder.values()
    known = {str(token) for token in added if token.special}
    return sorted(known | {*tokenizer.all_special_tokens, *stop_words})


def _meant(column: str, known: Iterable[str]) -> str:
    near = suggest(column, known)
    return near if near.startswith(" Did you mean") else ""


@dataclass
class _Look:
    found: SetAudit
    findings: Findings
    reader: DatasetReader
    stage: Stage
    measure: Any  # the stage, encoding rows uncut; None without a tokenizer, and for texts
    repeats: Repeats
    oddities: Sequence[Oddity]

    def run(self) -> None:
        found, reader = self.found, self.reader
        self.seen: set[str] = set()
        self.unread: dict[str, Row] = {}
        self.unread_counts: Counter[str] = Counter()
        found.files = [file.name for file in reader.source.files] or [reader.description.location]
        for file in reader.source.files:
            with file.open() as stream:
                if stream.read(3) == codecs.BOM_UTF8:
                    fix = "Nothing to mend: it is passed over here, but other programs stumble."
                    reason = "a byte-order mark at the start of the file"
                    self.findings.add(found.name, RowProblem(f"{file.name}:1", "", reason, fix))
        for batch in reader.batches():
            found.detected = reader.detected
            found.format = reader.description.formatting or ""
            found.num_rows += len(batch.rows)
            self.look_at_values(batch)
            self.look_at_records(batch)
        found.remarks = dict(reader.reading.remarks)
        self.tell_columns()

    def look_at_values(self, batch: Batch) -> None:
        """Oddities in texts, and what is never read."""
        read, tags = self.reader.description.columns_read(), self.reader.description.tags
        self.columns = [*read.values()]
        self.keys = {tags.role_tag, tags.content_tag, *KEYS}
        of_messages = {read[part] for part in ("messages", "other messages") if part in read}
        for problem in batch.problems:
            self.leave_out(problem)
        for row in batch.rows:
            if not (isinstance(row, Row) and isinstance(row.values, Mapping)):
                continue
            self.seen |= row.values.keys()
            unread = [*map(str, row.values.keys() - self.columns)]
            for column in of_messages & row.values.keys():
                listed = row.values[column]
                keys = {
                    str(key)
                    for message in (listed if isinstance(listed, list) else [])
                    if isinstance(message, Mapping)
                    for key, value in message.items()
                    if value is not None
                }
                unread += [f"{column}[].{key}" for key in keys - self.keys]
            for column in unread:
                if column in self.unread or len(self.unread) < MOST_COLUMNS:
                    self.unread.setdefault(column, row)
                    self.unread_counts[column] += 1
            for oddity in find_oddities(row.values, self.columns, self.oddities):
                self.note(row.origin, oddity, row.values)

    def tell_columns(self) -> None:
        """Columns that nobody reads, and those that were named and are not there."""
        found, description = self.found, self.reader.description
        for column, row in self.unread.items():
            known = self.keys if "[]." in column else self.columns
            fix = f"Nothing is learned from it.{_meant(column.rpartition('[].')[2], known)}"
            if part := description.part_left_out(column):
                named = f'"columns": {{"{part}": "{column}"}}'
                fix += f" To read it, name it in dataset_info.json: {named}."
            said = f" (in {self.unread_counts[column]:,} of {found.num_rows:,} rows)"
            self.note(
                row.origin, RowError(column, "a column that is not read", fix, said), row.values
            )
        usual = {*asdict(Columns()).values(), *asdict(OPENAI_COLUMNS).values()}
        for column in sorted({*description.columns_read().values()} - usual - self.seen):
            near = suggest(column, self.seen)
            fix = f'Mend "columns" of {found.name!r}.' + (
                near if near.startswith(" Did you") else ""
            )
            reason = "a column that stands in no row"
            self.findings.add(found.name, RowProblem(found.files[0], column, reason, fix))

    def look_at_records(self, batch: Batch) -> None:
        """What stands twice, what says nothing, and how long the others are."""
        texts = [(at, one) for at, one in batch.records if isinstance(one, Text)]
        full = [(at, text) for at, text in texts if text.content.strip()]
        others = [(at, one) for at, one in batch.records if not isinstance(one, Text)]
        for number, record in [*others, *full]:
            if repeat := self.repeats.add(record):
                self.note(record.origin, repeat, batch.values(number))
        for at, text in texts:
            if not text.content.strip():
                self.set_aside(text, EMPTY, batch.values(at))
        weighing = []
        for at, record in others:
            answers = [conversation for _, conversation in answers_of(record)]
            if not answers[0].messages[-1].content:
                continue
            if answers[0].weight == 0:
                self.set_aside(record, UNLEARNED, batch.values(at))
                continue
            weighing.append((at, record))
            self.found.answers.add(
                record, [len(one.messages[-1].said + one.messages[-1].content) for one in answers]
            )
        if isinstance(self.stage, PreTraining) and self.stage.tokenizer is not None:
            ids = self.stage.encoder.encode([text for _, text in full])
            for (_, text), one in zip(full, ids, strict=True):
                self.found.lengths.add(len(one), text.origin)
                self.found.lengths.num_learned += len(one)
        elif self.measure is not None:
            self.encode(weighing, batch)

    def encode(self, answered: Sequence[tuple[int, Any]], batch: Batch) -> None:
        """Measures the rows uncut, and cuts those that are too long as training does."""
        lengths, options = self.found.lengths, self.stage.options
        long: list[tuple[int, Any, int]] = []
        outcomes = self.measure.examples([one for _, one in answered])
        for (number, record), outcome in zip(answered, outcomes, strict=True):
            values = batch.values(number)
            if isinstance(outcome, RowProblem):
                self.leave_out(outcome, values)
            elif isinstance(outcome, LeftOut):
                self.set_aside(record, outcome.reason, values)
            else:
                num_tokens = max(most for one in outcome for most in one.sequence_lengths)
                lengths.add(num_tokens, record.origin)
                if num_tokens > options.cutoff_len:
                    long.append((number, record, num_tokens))
                else:
                    lengths.num_learned += _count_learned(outcome)
        outcomes = self.stage.examples([one for _, one, _ in long])
        for (number, record, num_tokens), outcome in zip(long, outcomes, strict=True):
            self.tell_overlong(
                record, num_tokens, outcome, options.on_overlong, batch.values(number)
            )

    def tell_overlong(
        self,
        record: Any,
        num_tokens: int,
        outcome: Outcome,
        on_overlong: str,
        values: Any,
    ) -> None:
        found = self.found
        parts = outcome if isinstance(outcome, list) else []
        lost = sum(part.num_cut for part in parts) if parts else num_tokens
        found.lengths.num_cut += 1
        found.lengths.num_lost += lost
        found.lengths.num_learned += _count_learned(parts)
        if isinstance(outcome, RowProblem):
            self.leave_out(outcome, values)
            return
        said, fix = f"{num_tokens:,} tokens", "Raise cutoff_len, or split the row."
        if len(parts) > 1 and on_overlong == "split":
            said += f" in {len(parts)} parts"
        if not parts and on_overlong == "truncate":
            fix = "Raise cutoff_len: system text, tools and headers, which are not cut, fill it."
        elif not parts:
            fix = "Raise cutoff_len, or set on_overlong to truncate or split."
        elif lost:
            said += f", {lost:,} are cut off"
        problem = RowError("", OVERLONG, fix, f" ({said})")
        if not parts and on_overlong == "error":
            found.is_refused = True
            self.leave_out(RowProblem.of(record.origin, problem, values))
            return
        found.num_aside += not parts
        self.note(record.origin, problem, values)

    def set_aside(self, record: Any, reason: str, values: Any) -> None:
        self.found.num_aside += 1
        fix = "Nothing to mend, if that is meant."
        self.note(record.origin, RowError("", reason, fix), values)

    def note(self, origin: Origin | None, error: RowError, values: Any) -> None:
        self.findings.add(self.found.name, RowProblem.of(origin, error, values))

    def leave_out(self, problem: RowProblem, values: Any = None) -> None:
        self.found.num_bad += 1
        if values is not None and not problem.excerpt:
            problem = replace(problem, excerpt=show_value(values))
        self.findings.add(self.found.name, problem, is_error=True)
