"""the data's route: files -> rows -> conversations -> encoded sets to train and evaluate on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.data.cache import cache_root, get_or_build, hash_of, hash_of_tokenizer
from luthier.data.catalog import (
    Catalog,
    check_datasets,
    check_readable,
    load_catalog,
    metric_names,
)
from luthier.data.check import (
    NUM_LISTED,
    RowError,
    RowProblem,
    check_budget,
    count_reasons,
)
from luthier.data.encode import Encoder, EncodingOptions
from luthier.data.formats.detect import NUM_LOOKED_AT, detect_format
from luthier.data.formats.registry import FORMATS, Format, Reading
from luthier.data.mixing import mix, pick_rows, split
from luthier.data.report import DataReport, SetReport
from luthier.data.sources import HubAccess, Row, RowOrProblem, Source
from luthier.data.table import Purpose, encode_rows, schema
from luthier.errors import DataError, TemplateError
from luthier.records import Conversation, Message, Record

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from luthier.arguments.record import Arguments
    from luthier.templates.template import Renders

__all__ = ["EncodedDatasets", "check_datasets", "load_datasets"]

_ROWS, _REPORT = "rows.arrow", "report.json"


@dataclass
class EncodedDatasets:
    """What a run trains, evaluates and predicts on.

    Attributes:
        train: columns input_ids, labels, num_tokens, num_learned, origin; None without training.
        eval: the same by the name of the set; the name is empty for a single one.
        predict: input_ids (the prompt), labels (the answer) and origin, by the same names.
        report: what became of the rows.
    """

    train: datasets.Dataset | None = None
    eval: dict[str, datasets.Dataset] = field(default_factory=dict)
    predict: dict[str, datasets.Dataset] = field(default_factory=dict)
    report: DataReport = field(default_factory=DataReport)


def load_datasets(
    arguments: Arguments,
    template: Renders,
    tokenizer: PreTrainedTokenizerBase,
    reads: type[Record] = Conversation,
) -> EncodedDatasets:
    """Reads, checks, encodes, mixes and splits the data sets of a run.

    Args:
        arguments: names of the data sets and how they are used.
        template: renders conversations.
        tokenizer: fitted to the template.
        reads: the record that the stage learns from.

    Raises:
        DataError: if a data set cannot be read as described, has too many wrong rows, or nothing
            is left of it.
    """
    assert reads is Conversation, "formats read conversations; other records have their stages"
    return _Loader(arguments, template, tokenizer).load()


class _Loader:
    """The data sets of one run; each is encoded once for a purpose."""

    def __init__(
        self, arguments: Arguments, template: Renders, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.arguments, self.data = arguments, arguments.data
        self.seed = arguments.training.seed
        self.catalog: Catalog = load_catalog(arguments.data.dataset_dir)
        self.encoder = Encoder(tokenizer, template, EncodingOptions.of(self.data))
        self.tool_separator = find_tool_separator(template)
        self.report = DataReport()
        self._tokenizer_hash = hash_of_tokenizer(tokenizer)
        self._encoded: dict[tuple[str, Purpose, bool], datasets.Dataset] = {}

    def load(self) -> EncodedDatasets:
        """Everything the arguments ask for."""
        training, data = self.arguments.training, self.data
        answers = training.predict_with_generate
        found = EncodedDatasets(report=self.report)
        if data.dataset and (training.do_train or data.val_size):
            whole = self._merge(data.dataset)
            if data.val_size:
                if data.val_size == 1:
                    console.info("val_size 1 is a number of rows: one is kept for evaluation")
                train, kept = split(whole, data.val_size, self.seed)
                found.eval[""] = kept
                if answers:
                    found.predict[""] = self._prompts_of(kept, data.dataset)
            else:
                train = whole
            found.train = train if training.do_train else None
        if data.eval_dataset:
            groups = (
                {
                    short: (name,)
                    for short, name in zip(
                        metric_names(data.eval_dataset), data.eval_dataset, strict=True
                    )
                }
                if data.eval_on_each_dataset
                else {"": data.eval_dataset}
            )
            for group, names in groups.items():
                learned = self._join(names, "learn", allow_prompts=answers)
                if len(learned):
                    found.eval[group] = learned
                if answers:
                    found.predict[group] = self._join(names, "answer", allow_prompts=True)
        return self._finish(found)

    def _finish(self, found: EncodedDatasets) -> EncodedDatasets:
        learned = ["input_ids", "labels", "num_tokens", "num_learned", "origin"]
        prompts = ["input_ids", "labels", "origin"]
        if found.train is not None:
            found.train = found.train.select_columns(learned)
            self.report.num_train = len(found.train)
        found.eval = {name: one.select_columns(learned) for name, one in found.eval.items()}
        found.predict = {name: one.select_columns(prompts) for name, one in found.predict.items()}
        self.report.num_eval = {name: len(one) for name, one in found.eval.items()}
        self.report.num_predict = {name: len(one) for name, one in found.predict.items()}
        for name, one in found.predict.items():
            if not len(one):
                raise DataError(f"no prompt is left to answer{f' in {name!r}' if name else ''}.")
        counts = [f"{self.report.num_train:,} rows to train on"] if found.train is not None else []
        counts += [f"{n:,} to evaluate on{_in(name)}" for name, n in self.report.num_eval.items()]
        counts += [f"{n:,} to answer{_in(name)}" for name, n in self.report.num_predict.items()]
        if counts:
            console.info(", ".join(counts))
        return found

    def _merge(self, names: Sequence[str]) -> datasets.Dataset:
        """The training sets as one, by `mix_strategy`."""
        sets = [self._encode(name, "learn") for name in names]
        for name, one in zip(names, sets, strict=True):
            if not len(one):
                raise DataError(f"data set {name!r}: no row is left to learn from.")
        numbered = [one.add_column("set", [at] * len(one)) for at, one in enumerate(sets)]
        return mix(numbered, self.data.mix_strategy, self.data.interleave_probs, self.seed)

    def _join(self, names: Sequence[str], purpose: Purpose, allow_prompts: bool) -> Any:
        """Evaluation sets one after the other, so that every row counts once."""
        sets = [self._encode(name, purpose, allow_prompts=allow_prompts) for name in names]
        return mix(sets, "concat", (), self.seed)

    def _prompts_of(self, kept: datasets.Dataset, names: Sequence[str]) -> datasets.Dataset:
        """The rows of `kept`, encoded as prompts instead, in the same order."""
        sets = [self._encode(name, "answer") for name in names]
        whole = mix(sets, "concat", (), self.seed)
        places: dict[tuple[int, int], int] = {}
        for at, one in enumerate(sets):
            for row in one["row"][:]:
                places[at, row] = len(places)
        pairs = zip(kept["set"][:], kept["row"][:], strict=True)
        return whole.select([places[pair] for pair in pairs])

    def _encode(self, name: str, purpose: Purpose, allow_prompts: bool = False) -> datasets.Dataset:
        """One data set, from the cache or built, its report said and its budget checked."""
        import datasets

        if (name, purpose, allow_prompts) in self._encoded:
            return self._encoded[name, purpose, allow_prompts]
        description = self.catalog.describe(name)
        check_readable(description)
        model, data = self.arguments.model, self.data
        token = model.hf_hub_token.get_secret_value() if model.hf_hub_token else None
        hub = HubAccess(model.cache_dir, token, data.preprocessing_num_workers)
        source = Source(description, hub)
        report = SetReport(name, purpose, hashes=source.hashes())
        report.key = hash_of(
            {
                "description": asdict(description),
                "files": report.hashes,
                "rows": [data.max_samples, description.num_samples and self.seed],
                "encoding": asdict(self.encoder.options),
                "purpose": [purpose, allow_prompts],
                "template": self.encoder.template.fingerprint(),
                "tokenizer": self._tokenizer_hash,
                "tool_separator": self.tool_separator,
            }
        )

        def build(folder: Path) -> None:
            self._build(folder, source, report, allow_prompts)

        root = cache_root(model.cache_dir)
        folder, was_cached = get_or_build(root, report.key, build, overwrite=data.overwrite_cache)
        if was_cached:
            saved = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
            report = SetReport(**(saved | {"name": name, "was_cached": True}))
        self.report.sets.append(report)
        for line in report.lines():
            console.info(line)
        check_budget(name, report.num_read, report.skipped, report.problems, data.max_bad_rows)
        if purpose == "learn":
            for warning in report.warnings():
                console.warn(warning)
        if not report.num_read:
            raise DataError(f"data set {name!r}: there are no rows in {', '.join(report.hashes)}.")
        encoded = datasets.Dataset.from_file(str(folder / _ROWS))
        self._encoded[name, purpose, allow_prompts] = encoded
        return encoded

    def _build(self, folder: Path, source: Source, report: SetReport, allow_prompts: bool) -> None:
        """Writes the encoded rows and the report into `folder`."""
        import pyarrow

        data, purpose = self.data, report.purpose
        rows = list(self._take(source))
        description = source.description
        if description.formatting is None and rows:
            values = [row.values for row in rows[:NUM_LOOKED_AT] if isinstance(row, Row)]
            description, report.detected = detect_format(description, values)
        report.format = description.formatting or ""
        reading = Reading(description, not allow_prompts, self.tool_separator)
        conversations, problems = read_rows(rows, reading)
        report.num_read, report.remarks = len(rows), dict(reading.remarks)
        if allow_prompts and purpose == "learn":
            is_answered = [(at, one) for at, one in conversations if one.messages[-1].content]
            left = len(conversations) - len(is_answered)
            if left:
                report.remarks["no answer, only generated from"] = left
            conversations = is_answered
        with (
            pyarrow.OSFile(str(folder / _ROWS), "wb") as file,
            pyarrow.ipc.new_stream(file, schema()) as stream,
        ):
            for batch in encode_rows(
                conversations,
                self.encoder,
                "learn" if purpose == "learn" else "answer",
                batch_size=data.preprocessing_batch_size,
                num_workers=data.preprocessing_num_workers or 1,
            ):
                stream.write_batch(batch.table)
                problems += batch.problems
                report.num_kept += batch.table.num_rows
                report.num_rows_cut += batch.num_rows_cut
                report.num_tokens_cut += batch.num_tokens_cut
                report.num_tokens += batch.num_tokens
                report.num_learned += batch.num_learned
        report.skipped = count_reasons(problems)
        report.problems = [str(problem) for problem in problems[:NUM_LISTED]]
        (folder / _REPORT).write_text(json.dumps(asdict(report)), encoding="utf-8")

    def _take(self, source: Source) -> Sequence[RowOrProblem]:
        """The rows that are used, by `num_samples` and `max_samples`."""
        num_samples, most = source.description.num_samples, self.data.max_samples
        if num_samples is None:
            return list(islice(source.rows(), most))
        rows = list(source.rows())
        return [rows[at] for at in pick_rows(len(rows), num_samples, most, self.seed)]


def read_rows(
    rows: Sequence[RowOrProblem], reading: Reading
) -> tuple[list[tuple[int, Conversation]], list[RowProblem]]:
    """Conversations with the number of their row, and the rows that are none."""
    read: Format = FORMATS.get(reading.description.formatting or "alpaca")
    conversations: list[tuple[int, Conversation]] = []
    problems: list[RowProblem] = []
    for number, row in enumerate(rows):
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        try:
            if not isinstance(row.values, Mapping):
                raise RowError("", "no object", 'Each row is an object: {"column": value, ...}.')
            conversations.append((number, read(row.values, reading, row.origin)))
        except RowError as error:
            problems.append(RowProblem.of(row.origin, error, row.values))
    return conversations, problems


def find_tool_separator(template: Renders) -> str:
    """What joins the contents of tool messages that follow each other.

    Templates that wrap an observation in `<tool_response>` get each content wrapped on its own;
    for others the contents stand on lines of their own.
    """
    probe = Conversation(
        (
            Message("user", "question"),
            Message("function", '{"name": "find", "arguments": {}}'),
            Message("observation", "found"),
        )
    )
    try:
        texts = [piece.content for piece in template.prompt(probe)]
    except TemplateError:
        return "\n"
    is_wrapped = any(isinstance(text, str) and "<tool_response>\nfound" in text for text in texts)
    return "\n</tool_response>\n<tool_response>\n" if is_wrapped else "\n"


def _in(name: str) -> str:
    return f" in {name!r}" if name else ""
