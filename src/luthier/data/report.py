"""what became of the rows: counts, reasons and hashes, for the console and run.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.data.check import NUM_LISTED, RowProblem, is_over_budget
from luthier.data.encode import OVERLONG
from luthier.errors import DataError
from luthier.example import Example, count_learned

if TYPE_CHECKING:
    from luthier.arguments.data import DataArguments

LEAST_ROWS = 1000
"""A share of bad rows is one of so many at least, as long as not all rows were seen."""


@dataclass
class Counts:
    """What became of some rows."""

    num_read: int = 0  # rows taken from the files, wrong ones included
    num_kept: int = 0  # examples made of them
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> rows that are wrong
    problems: list[str] = field(default_factory=list)  # the first wrong rows, as text
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> rows that are right and not used: longer than cutoff_len with `on_overlong: drop`
    or in what is never cut, or of weight 0."""
    remarks: dict[str, int] = field(default_factory=dict)  # what is not learned from -> rows of it
    num_rows_split: int = 0  # rows that became several examples
    num_parts: int = 0  # the examples that those became
    num_rows_cut: int = 0  # rows that lost tokens to cutoff_len
    num_tokens_cut: int = 0  # the tokens they lost
    num_tokens: int = 0  # tokens kept
    num_learned: int = 0  # tokens that are learned, or sequences that are scored
    longest: int = 0  # the tokens of the longest sequence that was met, before anything was cut
    kinds: dict[str, int] = field(default_factory=dict)
    """What conversations hold, as `templates.fit.kind_of` says it -> how many."""

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

    def keep(
        self, examples: Sequence[Example], *, is_asked: bool = False, is_scored: bool = False
    ) -> None:
        """Counts what a row gave.

        Args:
            examples: at least one.
            is_asked: whether they are prompts, their labels apart.
            is_scored: whether each sequence is learned from as a whole.
        """
        num_cut = sum(each.num_cut for each in examples)
        num_tokens = sum(len(each.input_ids) for each in examples)
        num_learned = sum(
            len(each.sequence_lengths)
            if is_scored
            else each.num_units
            if is_asked or each.labels is None  # of a text all is learned
            else count_learned(each.labels, each.lengths)
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
        self.longest = max(self.longest, max(each.num_whole for each in examples) or num_all)

    @property
    def num_skipped(self) -> int:
        """Wrong rows, for whatever reason."""
        return sum(self.skipped.values())


@dataclass
class SetReport(Counts):
    """What became of one data set's rows, and what is said of it.

    Of rows that are kept it is said when all are known, of rows that pass by as they are met.
    """

    name: str = ""  # as the user calls it
    purpose: str = "learn"  # or "answer" for prompts to generate from
    scores: bool = False  # whether its answers are scored
    format: str = ""  # the formatting
    detected: str = ""  # what was detected, as a line; empty when it was described
    hashes: dict[str, str] = field(default_factory=dict)
    """File -> sha256 of its bytes; for the hub its name and fingerprint."""
    num_in_files: int = 0  # rows that `num_samples` chose among; 0 without it
    num_drawn: int = 0  # rows that it drew, some of them several times; 0 without it
    key: str = ""  # the name of the cache folder
    was_cached: bool = False  # whether it came from there

    @property
    def label(self) -> str:
        """What messages call it."""
        what = "" if self.purpose == "learn" else " (predicted)" if self.scores else " (prompts)"
        return f"data set {self.name!r}{what}"

    def line(self) -> str:
        """How many rows were read, and what became of them."""
        return (
            f"{self.label}: {self.num_read:,} rows read, {self.num_kept:,} kept, "
            f"{self.num_skipped:,} skipped, {self.num_rows_cut:,} cut"
        )

    def say(self, data: DataArguments) -> None:
        """Tells what became of all rows, and ends the run where too many are wrong or too long."""
        label, is_learned = self.label, self.purpose == "learn"
        if self.detected and is_learned:
            console.info(f"{label}: {self.detected}")
        console.info(
            f"{self.line()}; {self.num_tokens:,} tokens, {self.num_learned:,} "
            f"{'answers to score' if self.scores else 'learned' if is_learned else 'in answers'} "
            f"({'from the cache' if self.was_cached else 'encoded'}, {self.key[:12]})"
        )
        for reason, count in self.left_out.items():
            console.info(f"{label}: {count:,} rows left out: {reason}")
        if self.num_rows_split:
            console.info(
                f"{label}: {self.num_rows_split:,} rows are longer than cutoff_len and were split "
                f"into {self.num_parts:,} examples"
            )
        if self.num_drawn:
            console.info(
                f"{label}: num_samples drew {self.num_drawn:,} of {self.num_in_files:,} rows"
            )
        for remark, count in self.remarks.items():
            console.info(f"{label}: {count:,} x {remark}")
        self.check_budget(data)
        for warning in self._warnings() if is_learned else ():
            console.warn(warning)
        self._check_lengths(data)
        if data.on_overlong in ("truncate", "split") and OVERLONG in self.left_out:
            console.warn(
                f"data set {self.name!r}: {self.left_out[OVERLONG]:,} rows are left out: their "
                "system text, tools and headers, which are not cut, are longer than cutoff_len "
                f"{data.cutoff_len:,}. Raise cutoff_len; the longest sequence has "
                f"{self.longest:,} tokens."
            )

    def say_more(self, counts: Counts, data: DataArguments) -> None:
        """Adds what became of further rows, says what is new, and ends the run as `say` does."""
        label, num_said = self.label, self.num_skipped
        was_long = bool(self.num_rows_cut or self.left_out.get(OVERLONG))
        for remark in counts.remarks.keys() - self.remarks.keys():
            console.info(f"{label}: {remark}; such rows are counted")
        self.add(counts)
        for problem in counts.problems[: max(NUM_LISTED - num_said, 0)]:
            console.warn(f"{label}: {problem}")
        if num_said < NUM_LISTED <= self.num_skipped:
            console.warn(f"{label}: further bad rows are counted, not shown")
        if not was_long and (counts.num_rows_cut or OVERLONG in counts.left_out):
            console.warn(
                f"{label}: rows are longer than cutoff_len {data.cutoff_len:,} "
                f"(here {counts.longest:,} tokens); they are counted"
            )
        self._check_lengths(data)
        self.check_budget(data, LEAST_ROWS)

    def check_budget(self, data: DataArguments, least: int = 0) -> None:
        """Ends the run when more rows are wrong than `max_bad_rows` allows of so many at least.

        Raises:
            DataError: with the first rows and the counts.
        """
        allowed, num_bad = data.max_bad_rows, self.num_skipped
        if not is_over_budget(num_bad, max(self.num_read, least), allowed):
            return
        shown = "\n".join(f"  {text}" for text in self.problems[:NUM_LISTED])
        counts = "\n".join(f"  {count:,} x {reason}" for reason, count in self.skipped.items())
        budget = f"{allowed:.3g} of them" if allowed < 1 else f"{allowed:,.0f}"
        raise DataError(
            f"data set {self.name!r}: {num_bad:,} of {self.num_read:,} rows cannot be used; "
            f"max_bad_rows allows {budget}.\n{shown}\nCounts:\n{counts}\nMend the rows, or raise "
            "max_bad_rows."
        )

    def _check_lengths(self, data: DataArguments) -> None:
        if data.on_overlong == "error" and OVERLONG in self.left_out:
            raise DataError(
                f"data set {self.name!r}: {self.left_out[OVERLONG]:,} rows are longer than "
                f"cutoff_len {data.cutoff_len:,}, the longest has {self.longest:,} tokens; "
                "on_overlong: error allows none. Raise cutoff_len, or set on_overlong to "
                "truncate, drop or split."
            )

    def _warnings(self) -> Iterator[str]:
        if self.skipped:
            reasons = sorted(self.skipped.items(), key=lambda item: -item[1])
            counts = "; ".join(f"{count:,} x {reason}" for reason, count in reasons)
            shown = "".join(f"\n  {text}" for text in self.problems[:3])
            more = "\n  ..." if self.num_skipped > 3 else ""
            head = f"data set {self.name!r}: {self.num_skipped:,} rows skipped"
            yield f"{head}: {counts}{shown}{more}"
        if self.num_rows_cut:
            share = self.num_tokens_cut / (self.num_tokens_cut + self.num_tokens)
            yield (
                f"data set {self.name!r}: {self.num_rows_cut:,} rows are longer than cutoff_len "
                f"and lost {self.num_tokens_cut:,} tokens ({share:.1%}). Raise cutoff_len to keep "
                f"them; the longest sequence has {self.longest:,} tokens."
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
    """What became of rows that were packed."""

    name: str  # the part of the run's data, `train` or an evaluation set
    num_rows: int = 0  # documents or conversations
    num_blocks: int = 0  # examples made of them
    num_sequences: int = 0  # sequences in those, parts of long documents counted each
    num_tokens: int = 0  # of the blocks, BOS and repeated context included
    num_learned: int = 0  # tokens that are predicted
    size: int = 0  # the most tokens of a block
    was_cached: bool = False  # whether they were found, not made

    @property
    def fill(self) -> float:
        """The share of the blocks that is filled."""
        return self.num_tokens / max(self.num_blocks * self.size, 1)


@dataclass
class DataReport:
    """What a run keeps about its data."""

    sets: list[SetReport] = field(default_factory=list)  # one for each data set and purpose
    packed: list[Packing] = field(default_factory=list)  # one for each part that was packed
    num_train: int = 0  # rows to train on
    num_eval: dict[str, int] = field(default_factory=dict)  # rows to evaluate on, by set
    num_predict: dict[str, int] = field(default_factory=dict)  # prompts to answer, by set

    def kinds(self) -> set[str]:
        """What the conversations hold; empty where that is not known of each set."""
        known = [one.kinds for one in self.sets if one.num_kept or not one.num_read]
        return {kind for kinds in known for kind in kinds} if all(known) else set()

    def line(self) -> str:
        """How many rows each set has; empty when there is none."""
        counts = [f"{self.num_train:,} rows to train on"] if self.num_train else []
        for use, sets in (("evaluate on", self.num_eval), ("answer", self.num_predict)):
            counts += [
                f"{n:,} to {use}" + (f" in {one!r}" if one else "") for one, n in sets.items()
            ]
        return ", ".join(counts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
