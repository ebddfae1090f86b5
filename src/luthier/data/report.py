"""what became of the rows: counts, reasons and hashes, for the console and run.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from luthier.data.check import NUM_LISTED, RowProblem
from luthier.data.encode import OVERLONG
from luthier.errors import DataError
from luthier.example import Example, count_learned


@dataclass
class Counts:
    """What became of some rows.

    Attributes:
        num_read: rows taken from the files, wrong ones included.
        num_kept: examples made of them.
        skipped: reason -> rows that are wrong.
        problems: the first wrong rows, as text.
        left_out: reason -> rows that are right and not used: longer than cutoff_len with
            `on_overlong: drop` or in what is never cut, or of weight 0.
        remarks: what rows had that is not learned from -> how many rows.
        num_rows_split: rows that became several examples.
        num_parts: the examples that those became.
        num_rows_cut: rows that lost tokens to cutoff_len.
        num_tokens_cut: the tokens they lost.
        num_tokens: tokens kept.
        num_learned: tokens that are learned.
        longest: the tokens of the longest row that was met, before anything was cut.
        kinds: what conversations hold, as `templates.fit.kind_of` says it -> how many.
    """

    num_read: int = 0
    num_kept: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)
    num_rows_split: int = 0
    num_parts: int = 0
    num_rows_cut: int = 0
    num_tokens_cut: int = 0
    num_tokens: int = 0
    num_learned: int = 0
    longest: int = 0
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, other: Counts | Mapping[str, Any]) -> None:
        """Takes in the counts of further rows."""
        given = asdict(other) if isinstance(other, Counts) else other
        for one in fields(Counts):
            mine, theirs = getattr(self, one.name), given[one.name]
            if one.name == "longest":
                self.longest = max(mine, theirs)
            elif isinstance(mine, dict):
                setattr(self, one.name, dict(Counter(mine) + Counter(theirs)))
            elif isinstance(mine, list):
                setattr(self, one.name, (mine + theirs)[:NUM_LISTED])
            else:
                setattr(self, one.name, mine + theirs)

    def skip(self, problem: RowProblem) -> None:
        """Counts a wrong row."""
        reason = f"{problem.column}: {problem.reason}" if problem.field else problem.reason
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        if len(self.problems) < NUM_LISTED:
            self.problems.append(str(problem))

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Counts a row that is right and not used."""
        self.left_out[reason] = self.left_out.get(reason, 0) + count

    def keep(self, examples: Sequence[Example], *, is_asked: bool) -> None:
        """Counts what a row gave; `is_asked` where examples are prompts, their labels apart."""
        num_cut = sum(each.num_cut for each in examples)
        num_tokens = sum(len(each.input_ids) for each in examples)
        num_learned = sum(
            each.num_units if is_asked else count_learned(each.labels, each.lengths)
            for each in examples
        )
        self.num_kept += len(examples)
        self.num_tokens += num_tokens
        self.num_learned += num_learned
        if num_cut:
            self.num_rows_cut += 1
            self.num_tokens_cut += num_cut
        if len(examples) > 1 and not examples[0].sequence_numbers:  # a pair's answers are no parts
            self.num_rows_split += 1
            self.num_parts += len(examples)
        num_all = num_tokens + num_cut + (num_learned if is_asked else 0)
        self.longest = max(self.longest, num_all)

    @property
    def num_skipped(self) -> int:
        """Wrong rows, for whatever reason."""
        return sum(self.skipped.values())


@dataclass
class SetReport(Counts):
    """What became of one data set's rows.

    Attributes:
        name: as the user calls it.
        purpose: "learn", or "answer" for prompts to generate from.
        format: the formatting.
        detected: what was detected, as a line; empty when it was described.
        hashes: file -> sha256 of its bytes; for the hub its name and fingerprint.
        num_in_files: rows that `num_samples` chose among; 0 without it.
        num_drawn: rows that it drew, some of them several times; 0 without it.
        key: the name of the cache folder.
        was_cached: whether it came from there.
    """

    name: str = ""
    purpose: str = "learn"
    format: str = ""
    detected: str = ""
    hashes: dict[str, str] = field(default_factory=dict)
    num_in_files: int = 0
    num_drawn: int = 0
    key: str = ""
    was_cached: bool = False

    def lines(self) -> Iterator[str]:
        """What the console says."""
        label = f"data set {self.name!r}" + (" (prompts)" if self.purpose == "answer" else "")
        if self.detected and self.purpose == "learn":
            yield f"{label}: {self.detected}"
        source = "from the cache" if self.was_cached else "encoded"
        yield (
            f"{label}: {self.num_read:,} rows read, {self.num_kept:,} kept, {self.num_skipped:,} "
            f"skipped, {self.num_rows_cut:,} cut; {self.num_tokens:,} tokens, "
            f"{self.num_learned:,} {'learned' if self.purpose == 'learn' else 'in answers'} "
            f"({source}, {self.key[:12]})"
        )
        for reason, count in self.left_out.items():
            yield f"{label}: {count:,} rows left out: {reason}"
        if self.num_rows_split:
            yield (
                f"{label}: {self.num_rows_split:,} rows are longer than cutoff_len and were split "
                f"into {self.num_parts:,} examples"
            )
        if self.num_drawn:
            yield f"{label}: num_samples drew {self.num_drawn:,} of {self.num_in_files:,} rows"
        for remark, count in self.remarks.items():
            yield f"{label}: {count:,} x {remark}"

    def warnings(self) -> Iterator[str]:
        """What the reader can act on."""
        if self.skipped:
            reasons = sorted(self.skipped.items(), key=lambda item: -item[1])
            counts = "; ".join(f"{count:,} x {reason}" for reason, count in reasons)
            shown = "".join(f"\n  {text}" for text in self.problems[:3])
            more = "\n  ..." if self.num_skipped > 3 else ""
            head = f"data set {self.name!r}: {self.num_skipped:,} rows skipped"
            yield f"{head}: {counts}{shown}{more}"
        if self.num_rows_cut:
            answers = self.num_learned if self.purpose == "answer" else 0
            share = self.num_tokens_cut / (self.num_tokens_cut + self.num_tokens + answers)
            yield (
                f"data set {self.name!r}: {self.num_rows_cut:,} rows are longer than cutoff_len "
                f"and lost {self.num_tokens_cut:,} tokens ({share:.1%}). Raise cutoff_len to keep "
                f"them; the longest row has {self.longest:,} tokens."
            )


def nothing_left(reports: Sequence[SetReport]) -> DataError:
    """Of data sets of which no row is used, and why."""
    why: Counter[str] = Counter()
    for report in reports:
        why += Counter(report.left_out) + Counter(report.skipped)
    counts = "; ".join(f"{count:,} x {reason}" for reason, count in why.most_common())
    longest = max(report.longest for report in reports)
    fix = f" Raise cutoff_len; the longest has {longest:,} tokens." if why[OVERLONG] else ""
    return DataError(
        f"data set {', '.join(repr(report.name) for report in reports)}: no row is left to learn "
        f"from{f' ({counts})' if counts else ''}.{fix}"
    )


@dataclass
class Packing:
    """What became of rows that were packed.

    Attributes:
        name: the part of the run's data, `train` or an evaluation set.
        num_rows: documents or conversations.
        num_blocks: examples made of them.
        num_sequences: sequences in those, parts of long documents counted each.
        num_tokens: of the blocks, BOS and repeated context included.
        num_learned: tokens that are predicted.
        size: the most tokens of a block.
        was_cached: whether they were found, not made.
    """

    name: str
    num_rows: int = 0
    num_blocks: int = 0
    num_sequences: int = 0
    num_tokens: int = 0
    num_learned: int = 0
    size: int = 0
    was_cached: bool = False

    @property
    def fill(self) -> float:
        """The share of the blocks that is filled."""
        return self.num_tokens / max(self.num_blocks * self.size, 1)


@dataclass
class DataReport:
    """What a run keeps about its data.

    Attributes:
        sets: one for each data set and purpose.
        packed: one for each part of the data whose rows were packed.
        num_train: rows to train on.
        num_eval: rows to evaluate on, by the name of the set.
        num_predict: prompts to answer, by the name of the set.
    """

    sets: list[SetReport] = field(default_factory=list)
    packed: list[Packing] = field(default_factory=list)
    num_train: int = 0
    num_eval: dict[str, int] = field(default_factory=dict)
    num_predict: dict[str, int] = field(default_factory=dict)

    def kinds(self) -> set[str]:
        """What the conversations hold; empty where that is not known of each set."""
        known = [one.kinds for one in self.sets if one.num_kept or not one.num_read]
        return {kind for kinds in known for kind in kinds} if all(known) else set()

    def line(self) -> str:
        """How many rows each set has; empty when there is none."""
        counts = [f"{self.num_train:,} rows to train on"] if self.num_train else []
        counts += [f"{n:,} to evaluate on{_in(name)}" for name, n in self.num_eval.items()]
        counts += [f"{n:,} to answer{_in(name)}" for name, n in self.num_predict.items()]
        return ", ".join(counts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _in(name: str) -> str:
    return f" in {name!r}" if name else ""
