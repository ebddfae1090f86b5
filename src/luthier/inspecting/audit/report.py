"""what an audit found, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from luthier.data.check import is_over_budget
from luthier.inspecting.audit.findings import Finding, Findings, Kind
from luthier.inspecting.audit.lengths import Lengths


@dataclass
class SetAudit:
    """What is known of one data set.

    Attributes:
        name: as the user calls it.
        use: "train" or "eval".
        lengths: of its rows in tokens; without rows when nothing was encoded.
        files: where it lies.
        format: the formatting.
        detected: what was detected, as a line; empty when it was described.
        num_rows: all rows.
        num_bad: those that training leaves out because they are wrong.
        num_aside: those that it leaves out because it is told to.
        remarks: what rows have that is not learned from -> how many rows.
        is_refused: whether training ends here, whatever `max_bad_rows` allows.
    """

    name: str
    use: str
    lengths: Lengths
    files: list[str] = field(default_factory=list)
    format: str = ""
    detected: str = ""
    num_rows: int = 0
    num_bad: int = 0
    num_aside: int = 0
    remarks: dict[str, int] = field(default_factory=dict)
    is_refused: bool = False

    @property
    def num_kept(self) -> int:
        """Rows to learn from."""
        return self.num_rows - self.num_bad - self.num_aside


@dataclass
class AuditReport:
    """What is known of all data sets.

    Attributes:
        findings: what was found in rows and files.
        max_bad_rows: the share or number of rows that training would leave out.
        is_encoded: whether rows were encoded, so that tokens are known.
        sets: one for each data set.
    """

    findings: Findings
    max_bad_rows: float
    is_encoded: bool
    sets: list[SetAudit] = field(default_factory=list)

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
                    "lengths": one.lengths.as_dict() if self.is_encoded else None,
                }
                for one in self.sets
            ],
            "kinds": [
                kind.as_dict() for errors in (True, False) for kind in findings.kinds(errors=errors)
            ],
            "findings": [finding.as_dict() for finding in findings],
        }

    def lines(self) -> Iterator[str]:
        """What a person reads."""
        for one in self.sets:
            yield from self._of_set(one)
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
        yield from self._of_kinds("errors: training leaves these out", errors=True)
        yield from self._of_kinds("notes: training takes these as they are", errors=False)
        num_errors, num_notes = self.findings.count(errors=True), self.findings.count(errors=False)
        yield f"{num_errors:,} errors, {num_notes:,} notes"

    def _of_set(self, one: SetAudit) -> Iterator[str]:
        yield f"{one.use} data {one.name!r}: {one.detected or one.format or 'not read'}"
        if not one.num_rows:
            return
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
        if one.lengths.tokens:
            yield f"  {one.lengths.line()}"

    def _of_kinds(self, title: str, *, errors: bool) -> Iterator[str]:
        kinds = self.findings.kinds(errors=errors)
        if not kinds:
            return
        yield title
        for kind in kinds:
            yield f"  {kind.count:,} x {kind}"
            yield from (f"    {line}" for line in _of_kind(kind))
        yield ""


def _of_kind(kind: Kind) -> Iterator[str]:
    mends = {finding.problem.fix for finding in kind.findings}
    for finding in kind.findings:
        yield _place_of(finding, with_field=finding.problem.field != kind.column)
        if finding.problem.excerpt:
            yield f"  {finding.problem.excerpt}"
        if len(mends) > 1:
            yield f"  {finding.problem.fix}"
    if kind.count > len(kind.findings):
        yield f"... and {kind.count - len(kind.findings):,} more (--all shows them)"
    if len(mends) == 1 and mends != {""}:
        yield f"mend: {mends.pop()}"


def _place_of(finding: Finding, *, with_field: bool) -> str:
    problem = finding.problem
    field = f", {problem.field}" if with_field and problem.field else ""
    return f"{problem.place}{field}{problem.found}"
