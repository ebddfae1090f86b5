"""data sets -> what is wrong with their rows, by the rules and readers of training."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from luthier.data.catalog import (
    OPENAI_COLUMNS,
    Catalog,
    Columns,
    DatasetDescription,
    load_catalog,
)
from luthier.data.check import RowError, RowProblem, show_value
from luthier.data.encode import OVERLONG, UNLEARNED, Encoder, LeftOut, Outcome
from luthier.data.formats.messages import KEYS
from luthier.data.formats.registry import ToolTurns
from luthier.data.pipeline import find_tool_turns
from luthier.data.reader import Row
from luthier.data.reading import Batch, DatasetReader
from luthier.data.sources import Source
from luthier.data.texts import EMPTY, TextEncoder
from luthier.errors import DataError, suggest
from luthier.inspecting.audit.findings import Findings
from luthier.inspecting.audit.lengths import Lengths
from luthier.inspecting.audit.repeats import Repeats
from luthier.inspecting.audit.report import AuditReport, SetAudit
from luthier.inspecting.audit.texts import ODDITIES, find_oddities, special_tokens
from luthier.records import Conversation, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.arguments.record import Arguments

UNCUT = 1 << 40
"""A cutoff_len that cuts nothing."""

MOST_COLUMNS = 50
"""How many columns that are not read are told apart."""


def audit(
    arguments: Arguments, encoder: Encoder | TextEncoder | None, most: int | None
) -> AuditReport:
    """Looks at every row of the data sets that the arguments name.

    Args:
        arguments: which data sets, and how they are read and cut.
        encoder: how rows are encoded in training; without one, nothing is said about tokens.
        most: findings of a kind that are kept; None for all.
    """
    return _Audit(arguments, encoder, most).run()


class _Audit:
    def __init__(
        self, arguments: Arguments, encoder: Encoder | TextEncoder | None, most: int | None
    ) -> None:
        self.arguments, self.data = arguments, arguments.data
        self.catalog: Catalog = load_catalog(
            arguments.data.dataset_dir, allow_outside=arguments.data.allow_outside
        )
        self.findings = Findings(most)
        self.tool_turns = ToolTurns()
        self.encoder: Encoder | None = None
        self.texts: TextEncoder | None = None
        self.is_encoded = encoder is not None
        special: list[str] = []
        if isinstance(encoder, TextEncoder):
            self.texts = encoder
            special = [] if encoder.splits_special else _special(encoder.tokenizer)
        elif encoder is not None:
            self.encoder = encoder
            uncut = replace(encoder.options, cutoff_len=UNCUT, on_overlong="truncate")
            self.measure = Encoder(encoder.tokenizer, encoder.template, uncut)
            self.tool_turns = find_tool_turns(encoder.template)
            if not encoder.options.split_special_tokens:
                special = _special(encoder.tokenizer, *encoder.template.stop_words)
        self.oddities = [*ODDITIES, *filter(None, [special_tokens(special)])]

    def run(self) -> AuditReport:
        data = self.data
        report = AuditReport(self.findings, data.max_bad_rows, is_encoded=self.is_encoded)
        trained = Repeats()
        for name in data.dataset:
            report.sets.append(self._look_at(name, "train", trained))
        evaluated = Repeats(trained)
        for name in data.eval_dataset:
            report.sets.append(self._look_at(name, "eval", evaluated))
        return report

    def _look_at(self, name: str, use: str, repeats: Repeats) -> SetAudit:
        is_cut = self.arguments.finetuning.stage != "pt"
        found = SetAudit(name, use, Lengths(self.data.cutoff_len if is_cut else None))
        try:
            reader = DatasetReader(
                self.arguments, self.catalog, name, use == "eval", self.tool_turns
            )
            self._look_at_rows(reader, found, repeats)
        except DataError as error:
            problem = RowProblem(name, "", "the data set cannot be read", "", f": {error}")
            self.findings.error(name, problem)
            found.is_refused = True
        return found

    def _look_at_rows(self, reader: DatasetReader, found: SetAudit, repeats: Repeats) -> None:
        source = reader.source
        found.files = [file.name for file in source.files] or [reader.description.location]
        self._look_at_starts(source, found.name)
        self._unread: dict[str, Row] = {}
        self._unread_counts: Counter[str] = Counter()
        self._seen: set[str] = set()
        for batch in reader.batches():
            found.detected = reader.detected
            found.format = reader.description.formatting or ""
            self._columns = [*reader.description.columns_read().values()]
            self._message_columns, self._message_keys = _message_keys_of(reader.description)
            found.num_rows += len(batch.rows)
            self._look_at_batch(batch, found, repeats)
        assert reader.reading is not None
        found.remarks = dict(reader.reading.remarks)
        self._tell_columns(reader, found)

    def _tell_columns(self, reader: DatasetReader, found: SetAudit) -> None:
        for column, row in self._unread.items():
            known = self._message_keys if "[]." in column else self._columns
            fix = f"Nothing is learned from it.{_meant(column.rpartition('[].')[2], known)}"
            if part := reader.description.part_left_out(column):
                named = f'"columns": {{"{part}": "{column}"}}'
                fix += f" To read it, name it in dataset_info.json: {named}."
            said = f" (in {self._unread_counts[column]:,} of {found.num_rows:,} rows)"
            problem = RowError(column, "a column that is not read", fix, said)
            self.findings.note(found.name, RowProblem.of(row.origin, problem, row.values))
        for column in sorted(_named(reader.description) - self._seen):
            fix = f'Mend "columns" of {found.name!r}.{_meant(column, self._seen)}'
            reason = "a column that stands in no row"
            self.findings.note(found.name, RowProblem(found.files[0], column, reason, fix))

    def _look_at_starts(self, source: Source, name: str) -> None:
        for file in source.files:
            with file.open() as stream:
                if stream.read(3) == codecs.BOM_UTF8:
                    fix = "Nothing to mend: it is passed over here, but other programs stumble."
                    reason = "a byte-order mark at the start of the file"
                    self.findings.note(name, RowProblem(f"{file.name}:1", "", reason, fix))

    def _look_at_batch(self, batch: Batch, found: SetAudit, repeats: Repeats) -> None:
        name = found.name
        for problem in batch.problems:
            self._leave_out(found, problem)
        for row in batch.rows:
            if isinstance(row, Row) and isinstance(row.values, Mapping):
                self._look_for_columns(row)
                for oddity in find_oddities(row.values, self._columns, self.oddities):
                    self.findings.note(name, RowProblem.of(row.origin, oddity, row.values))
        answered = [(at, one) for at, one in batch.conversations if one.messages[-1].content]
        full = [(at, text) for at, text in batch.texts if text.content.strip()]
        records: list[tuple[int, Conversation | Text]] = [*batch.conversations, *full]
        for number, record in records:
            repeat = repeats.add(record)
            if repeat is not None:
                self._note(found, record, repeat, batch.values(number))
        for at, text in batch.texts:
            if not text.content.strip():
                self._set_aside(found, text, EMPTY, batch.values(at))
        if self.texts is not None:
            ids = self.texts.encode([text for _, text in full])
            for (_, text), one in zip(full, ids, strict=True):
                found.lengths.add(len(one), text.origin)
                found.lengths.num_learned += len(one)
        weighing = [(at, one) for at, one in answered if one.weight != 0]
        for at, conversation in answered:
            if conversation.weight == 0:
                self._set_aside(found, conversation, UNLEARNED, batch.values(at))
        if self.encoder is not None:
            self._encode(batch, weighing, found)

    def _encode(
        self,
        batch: Batch,
        answered: Sequence[tuple[int, Conversation]],
        found: SetAudit,
    ) -> None:
        """Measures the rows uncut, and cuts those that are too long as training does."""
        assert self.encoder is not None
        long: list[tuple[int, Conversation, int]] = []
        outcomes = self.measure.learn([one for _, one in answered])
        for (number, conversation), outcome in zip(answered, outcomes, strict=True):
            if isinstance(outcome, RowProblem):
                self._leave_out(found, _with_excerpt(outcome, batch.values(number)))
            elif isinstance(outcome, LeftOut):
                self._set_aside(found, conversation, outcome.reason, batch.values(number))
            else:
                (example,) = outcome
                num_tokens = len(example.input_ids)
                found.lengths.add(num_tokens, conversation.origin)
                if num_tokens > self.data.cutoff_len:
                    long.append((number, conversation, num_tokens))
                else:
                    found.lengths.add_learned(example)
        outcomes = self.encoder.learn([one for _, one, _ in long])
        for (number, conversation, num_tokens), outcome in zip(long, outcomes, strict=True):
            self._tell_overlong(found, conversation, num_tokens, outcome, batch.values(number))

    def _tell_overlong(
        self,
        found: SetAudit,
        conversation: Conversation,
        num_tokens: int,
        outcome: Outcome,
        values: Any,
    ) -> None:
        parts = outcome if isinstance(outcome, list) else []
        lost = sum(part.num_cut for part in parts) if parts else num_tokens
        found.lengths.num_cut += 1
        found.lengths.num_lost += lost
        for part in parts:
            found.lengths.add_learned(part)
        if isinstance(outcome, RowProblem):
            self._leave_out(found, _with_excerpt(outcome, values))
            return
        said, fix = f"{num_tokens:,} tokens", "Raise cutoff_len, or split the row."
        if len(parts) > 1:
            said += f" in {len(parts)} parts"
        if not parts and self.data.on_overlong == "truncate":
            fix = "Raise cutoff_len: system text, tools and headers, which are not cut, fill it."
        elif not parts:
            fix = "Raise cutoff_len, or set on_overlong to truncate or split."
        elif lost:
            said += f", {lost:,} are cut off"
        problem = RowError("", OVERLONG, fix, f" ({said})")
        if parts:
            self._note(found, conversation, problem, values)
        elif self.data.on_overlong == "error":
            found.is_refused = True
            self._leave_out(found, RowProblem.of(conversation.origin, problem, values))
        else:
            found.num_aside += 1
            self._note(found, conversation, problem, values)

    def _set_aside(
        self, found: SetAudit, record: Conversation | Text, reason: str, values: Any
    ) -> None:
        found.num_aside += 1
        problem = RowError("", reason, "Nothing to mend, if that is meant.")
        self._note(found, record, problem, values)

    def _note(
        self, found: SetAudit, record: Conversation | Text, problem: RowError, values: Any
    ) -> None:
        self.findings.note(found.name, RowProblem.of(record.origin, problem, values))

    def _leave_out(self, found: SetAudit, problem: RowProblem) -> None:
        found.num_bad += 1
        self.findings.error(found.name, problem)

    def _look_for_columns(self, row: Row) -> None:
        self._seen |= row.values.keys()
        unread = [*map(str, row.values.keys() - self._columns)]
        for column in self._message_columns & row.values.keys():
            listed = row.values[column]
            messages = listed if isinstance(listed, list) else []
            keys = {
                str(key)
                for message in messages
                if isinstance(message, Mapping)
                for key, value in message.items()
                if value is not None
            }
            unread += [f"{column}[].{key}" for key in keys - self._message_keys]
        for column in unread:
            if column in self._unread or len(self._unread) < MOST_COLUMNS:
                self._unread.setdefault(column, row)
                self._unread_counts[column] += 1


def _with_excerpt(problem: RowProblem, values: Any) -> RowProblem:
    return problem if problem.excerpt else replace(problem, excerpt=show_value(values))


def _meant(column: str, known: Iterable[str]) -> str:
    near = suggest(column, known)
    return near if near.startswith(" Did you mean") else ""


def _named(description: DatasetDescription) -> set[str]:
    """The columns that somebody named, other than those that are read by default."""
    usual = {*asdict(Columns()).values(), *asdict(OPENAI_COLUMNS).values()}
    return {*description.columns_read().values()} - usual


def _special(tokenizer: PreTrainedTokenizerBase, *stop_words: str) -> list[str]:
    """Tokens whose text, wherever it stands, is read as one token that is no word."""
    added = tokenizer.added_tokens_decoder.values()
    known = {str(token) for token in added if token.special}
    return sorted(known | {*tokenizer.all_special_tokens, *stop_words})


def _message_keys_of(description: DatasetDescription) -> tuple[set[str], set[str]]:
    """The columns that hold messages, and the keys that are read of each."""
    tags, read = description.tags, description.columns_read()
    columns = {read[part] for part in ("messages", "other messages") if part in read}
    return columns, {tags.role_tag, tags.content_tag, *KEYS}
