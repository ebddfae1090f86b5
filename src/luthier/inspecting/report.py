"""what was found in data sets: rows by kind, lengths in tokens; for people and for programs."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.check import RowProblem, is_over_budget
from luthier.records import Feedback, Origin, Pair

ENOUGH = 0.99
"""The share of rows left whole, and of tokens kept, that a recommended cutoff_len reaches."""

ROUND_TO = 8
WIDTH = 40


@dataclass
class Kind:
    """All that was found of one kind."""

    column: str  # the column, without the numbers of messages
    reason: str  # what is wrong with it
    is_error: bool  # whether training leaves such rows out; the others are worth a look
    count: int = 0  # how many there are
    # the first of them, each with its data set
    findings: list[tuple[str, RowProblem]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.column}: {self.reason}" if self.column else self.reason

    @property
    def severity(self) -> str:
        """`error` or `note`."""
        return "error" if self.is_error else "note"

    def lines(self) -> Iterator[str]:
        """The rows, and what to do: once where it is the same for all."""
        mends = {problem.fix for _, problem in self.findings}
        for _, problem in self.findings:
            column = f", {problem.field}" if problem.field not in ("", self.column) else ""
            yield f"{problem.place}{column}{problem.found}"
            if problem.excerpt:
                yield f"  {problem.excerpt}"
            if len(mends) > 1:
                yield f"  {problem.fix}"
        if self.count > len(self.findings):
            yield f"... and {self.count - len(self.findings):,} more (--all shows them)"
        if len(mends) == 1 and mends != {""}:
            yield f"mend: {mends.pop()}"


class Findings:
    """Counts what was found in rows and files, and keeps the first `most` of each kind."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._kinds: dict[tuple[bool, str, str], Kind] = {}

    def add(self, dataset: str, problem: RowProblem, *, is_error: bool = False) -> None:
        """An error is a row that training leaves out, or a file that it refuses."""
        key = (is_error, problem.column, problem.reason)
        kind = self._kinds.setdefault(key, Kind(problem.column, problem.reason, is_error))
        kind.count += 1
        if self.most is None or len(kind.findings) < self.most:
            kind.findings.append((dataset, problem))

    def kinds(self, *, errors: bool) -> list[Kind]:
        """The kinds of errors, or of notes, the most frequent first."""
        found = [kind for kind in self._kinds.values() if kind.is_error is errors]
        return sorted(found, key=lambda kind: -kind.count)

    def count(self, *, errors: bool) -> int:
        """How many errors, or notes, there are."""
        return sum(kind.count for kind in self.kinds(errors=errors))

    def __iter__(self) -> Iterator[RowProblem]:
        for kind in (*self.kinds(errors=True), *self.kinds(errors=False)):
            yield from (problem for _, problem in kind.findings)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Plain values for JSON; a place without a line is a whole file."""
        found = []
        for kind in (*self.kinds(errors=True), *self.kinds(errors=False)):
            for dataset, problem in kind.findings:
                file, _, line = problem.origin.rpartition(":")
                is_row = bool(file) and line.isdecimal()
                found.append(
                    {
                        "dataset": dataset,
                        "file": file if is_row else problem.origin,
                        "line": int(line) if is_row else None,
                        "character": problem.position or None,
                        "column": problem.field or None,
                        "kind": problem.reason,
                        "severity": kind.severity,
                        "found": problem.found.strip(" :()") or None,
                        "excerpt": problem.excerpt,
                        "mend": problem.fix,
                    }
                )
        return found


@dataclass
class Lengths:
    """The lengths of the rows that can be learned from, before anything is cut."""

    # the one of the configuration; None where rows are put into blocks of that length, which
    # loses nothing
    cutoff_len: int | None
    tokens: array[int] = field(default_factory=lambda: array("q"))  # the length of each row
    num_learned: int = 0  # tokens that are learned, as many as fit
    num_cut: int = 0  # rows that are longer
    num_lost: int = 0  # the tokens they lose
    most: int = 0  # the tokens of the longest row
    longest: Origin | None = None  # where that stands

    def add(self, num_tokens: int, origin: Origin | None) -> None:
        """Takes in a row."""
        if not self.tokens or num_tokens > self.most:
            self.longest, self.most = origin, num_tokens
        self.tokens.append(num_tokens)

    def __add__(self, other: Lengths) -> Lengths:
        longer = self if self.most >= other.most else other
        return Lengths(
            self.cutoff_len,
            self.tokens + other.tokens,
            self.num_learned + other.num_learned,
            self.num_cut + other.num_cut,
            self.num_lost + other.num_lost,
            longer.most,
            longer.longest,
        )

    def total(self) -> int:
        """The tokens of all rows."""
        return sum(self.tokens)

    def histogram(self) -> list[tuple[int, int]]:
        """Upper ends that double from 16, and the rows up to each."""
        counts: dict[int, int] = {}
        for length in self.tokens:
            end = max(16, 1 << (length - 1).bit_length())
            counts[end] = counts.get(end, 0) + 1
        ends = [1 << bits for bits in range(4, 63)] if counts else []
        return [(end, counts.get(end, 0)) for end in ends if min(counts) <= end <= max(counts)]

    def cutoff_for_rows(self, share: float) -> int:
        """The smallest cutoff_len that leaves this share of the rows whole."""
        ordered = sorted(self.tokens)
        return ordered[max(-int(-share * len(ordered) // 1), 1) - 1]

    def cutoff_for_tokens(self, share: float) -> int:
        """The smallest cutoff_len that keeps this share of the tokens."""
        ordered, wanted = sorted(self.tokens), share * self.total()
        kept, waiting = 0, len(ordered)
        for length in ordered:  # up to this length all rows before are whole, the others reach it
            if kept + length * waiting >= wanted:
                return -int(-(wanted - kept) / waiting // 1)
            kept += length
            waiting -= 1
        return ordered[-1]

    def recommended(self) -> int:
        """The smallest multiple of 8 that leaves 99 % of the rows whole and 99 % of the tokens."""
        exact = max(self.cutoff_for_rows(ENOUGH), self.cutoff_for_tokens(ENOUGH))
        return -(-exact // ROUND_TO) * ROUND_TO

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        if not self.tokens:
            return {"rows": 0, "cutoff_len": self.cutoff_len}
        return {
            "rows": len(self.tokens),
            "tokens": self.total(),
            "learned": self.num_learned,
            "longest": self.most,
            "longest_at": str(self.longest or ""),
            "median": self.cutoff_for_rows(0.5),
            "histogram": [{"up_to": end, "rows": count} for end, count in self.histogram()],
            "cutoff_len": self.cutoff_len,
            "rows_cut": self.num_cut,
            "tokens_lost": self.num_lost,
            "recommended_cutoff_len": self.recommended() if self.cutoff_len else None,
        }

    def line(self) -> str:
        """The whole in one line."""
        cut = f", {self.num_cut:,} rows cut" if self.num_cut else ""
        return (
            f"{self.total():,} tokens, {self.num_learned:,} learned{cut}; median "
            f"{self.cutoff_for_rows(0.5):,}, longest {self.most:,} ({self.longest})"
        )

    def lines(self) -> Iterator[str]:
        """The histogram, what the cutoff costs, and the one to choose."""
        total, count, bars = self.total(), len(self.tokens), self.histogram()
        yield f"{count:,} rows, {self.line()}"
        highest = max(count for _, count in bars)
        for end, rows in bars:
            yield f"up to {end:>9,} | {'#' * (-(-rows * WIDTH // highest)):<{WIDTH}} {rows:,}"
        if self.cutoff_len is None:
            yield "texts fill blocks of cutoff_len tokens, and none is lost"
            return
        if self.num_cut:
            yield (
                f"cutoff_len {self.cutoff_len:,}: {self.num_cut:,} rows are longer "
                f"({self.num_cut / count:.2%}) and lose {self.num_lost:,} tokens "
                f"({self.num_lost / total:.2%})"
            )
        else:
            yield f"cutoff_len {self.cutoff_len:,}: every row is whole"
        best = self.recommended()
        kept = f"{ENOUGH:.0%} of the rows whole and {ENOUGH:.0%} of the tokens"
        if best > self.cutoff_len:
            yield f"recommended: cutoff_len {best:,}, which keeps {kept}; {self.most:,} cuts none"
        elif best < self.cutoff_len:
            yield f"cutoff_len {best:,} would keep {kept}"


@dataclass
class Answers:
    """What is known of answers that are judged, their lengths in characters."""

    num_wanted: int = 0
    num_unwanted: int = 0
    wanted: int = 0  # characters of all
    unwanted: int = 0
    num_pairs: int = 0
    num_longer: int = 0  # pairs whose chosen answer is the longer one

    def add(self, record: Any, lengths: Sequence[int]) -> None:
        """Counts the answers of a record, whose lengths are given; others count nothing."""
        if isinstance(record, Pair):
            self.num_pairs += 1
            self.num_longer += lengths[0] > lengths[1]
            self.num_wanted, self.num_unwanted = self.num_wanted + 1, self.num_unwanted + 1
            self.wanted, self.unwanted = self.wanted + lengths[0], self.unwanted + lengths[1]
        elif isinstance(record, Feedback) and record.is_desirable:
            self.num_wanted, self.wanted = self.num_wanted + 1, self.wanted + lengths[0]
        elif isinstance(record, Feedback):
            self.num_unwanted, self.unwanted = self.num_unwanted + 1, self.unwanted + lengths[0]

    def as_dict(self) -> dict[str, float]:
        """Means and counts for JSON."""
        return {
            "wanted": self.num_wanted,
            "unwanted": self.num_unwanted,
            "pairs": self.num_pairs,
            "chosen_is_longer": self.num_longer,
            "characters_of_wanted": round(self.wanted / max(self.num_wanted, 1), 1),
            "characters_of_unwanted": round(self.unwanted / max(self.num_unwanted, 1), 1),
        }

    def line(self) -> str:
        """Which answers are longer, the first that a model learns of them."""
        means = self.as_dict()
        long, short = means["characters_of_wanted"], means["characters_of_unwanted"]
        names = ("chosen", "rejected") if self.num_pairs else ("wanted", "unwanted")
        said = f"{names[0]} answers have {long:,.0f} characters on average, {names[1]} {short:,.0f}"
        if self.num_pairs:
            return f"{said}; the chosen one is longer in {self.num_longer / self.num_pairs:.0%}"
        return f"{self.num_wanted:,} wanted answers, {self.num_unwanted:,} unwanted; {said}"


@dataclass
class SetAudit:
    """What is known of one data set."""

    name: str  # as the user calls it
    use: str  # "train" or "eval"
    lengths: Lengths  # of its rows in tokens; without rows when nothing was encoded
    files: list[str] = field(default_factory=list)  # where it lies
    format: str = ""  # the formatting
    detected: str = ""  # what was detected, as a line; empty when it was described
    num_rows: int = 0  # all rows
    num_bad: int = 0  # those that training leaves out because they are wrong
    num_aside: int = 0  # those that it leaves out because it is told to
    # what rows have that is not learned from -> how many rows
    remarks: dict[str, int] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)  # those that are judged
    is_refused: bool = False  # whether training ends here, whatever `max_bad_rows` allows

    @property
    def num_kept(self) -> int:
        """Rows to learn from."""
        return self.num_rows - self.num_bad - self.num_aside


@dataclass
class AuditReport:
    """What is known of all data sets."""

    findings: Findings  # what was found in rows and files
    max_bad_rows: float  # the share or number of rows that training would leave out
    is_encoded: bool  # whether rows were encoded, so that tokens are known
    sets: list[SetAudit] = field(default_factory=list)  # one for each data set

    @property
    def exit_code(self) -> int:
        """1 when there are errors."""
        return int(bool(self.findings.count(errors=True)))

    def is_refused(self, one: SetAudit) -> bool:
        """Whether training would stop at this data set."""
        return one.is_refused or is_over_budget(one.num_bad, one.num_rows, self.max_bad_rows)

    def lengths(self) -> Lengths:
        """Those of all data sets together."""
        first, *others = (one.lengths for one in self.sets)
        return sum(others, first)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        findings = self.findings
        return {
            "errors": findings.count(errors=True),
            "notes": findings.count(errors=False),
            "lengths": self.lengths().as_dict() if self.is_encoded else None,
            "sets": [
                {
                    "name": one.name,
                    "use": one.use,
                    "files": one.files,
                    "format": one.format or None,
                    "detected": one.detected or None,
                    "rows": one.num_rows,
                    "kept": one.num_kept,
                    "left_out": one.num_bad,
                    "set_aside": one.num_aside,
                    "is_refused": self.is_refused(one),
                    "remarks": one.remarks,
                    "answers": one.answers.as_dict() if one.answers.num_wanted else None,
                    "lengths": one.lengths.as_dict() if self.is_encoded else None,
                }
                for one in self.sets
            ],
            "kinds": [
                {
                    "kind": kind.reason,
                    "column": kind.column or None,
                    "severity": kind.severity,
                    "count": kind.count,
                    "mend": kind.findings[0][1].fix,
                }
                for errors in (True, False)
                for kind in findings.kinds(errors=errors)
            ],
            "findings": findings.as_dicts(),
        }

    def lines(self) -> Iterator[str]:
        """What a person reads."""
        for one in self.sets:
            yield f"{one.use} data {one.name!r}: {one.detected or one.format or 'not read'}"
            if not one.num_rows:
                continue
            aside = f", {one.num_aside:,} set aside as told" if one.num_aside else ""
            yield (
                f"  {one.num_rows:,} rows, {one.num_kept:,} to learn from, {one.num_bad:,} left out"
                f"{aside}"
            )
            if one.is_refused:
                yield "  training would stop: see the errors"
            elif self.is_refused(one):
                yield f"  training would stop: max_bad_rows is {self.max_bad_rows:g}"
            for remark, count in one.remarks.items():
                yield f"  {count:,} x {remark}"
            if one.answers.num_wanted or one.answers.num_unwanted:
                yield f"  {one.answers.line()}"
            if one.lengths.tokens:
                yield f"  {one.lengths.line()}"
        lengths = self.lengths()
        if lengths.tokens:
            yield "lengths in tokens, uncut"
            yield from (f"  {line}" for line in lengths.lines())
        elif not self.is_encoded:
            yield (
                "tokens were not counted: no tokenizer is named. Add model_name_or_path=FOLDER, or "
                "check a configuration."
            )
        yield ""
        for title, errors in (
            ("errors: training leaves these out", True),
            ("notes: training takes these as they are", False),
        ):
            if kinds := self.findings.kinds(errors=errors):
                yield title
                for kind in kinds:
                    yield f"  {kind.count:,} x {kind}"
                    yield from (f"    {line}" for line in kind.lines())
                yield ""
        num_errors, num_notes = self.findings.count(errors=True), self.findings.count(errors=False)
        yield f"{num_errors:,} errors, {num_notes:,} notes"
