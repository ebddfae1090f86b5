"""what was found in the rows: places by kind, and how often each kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from luthier.data.check import RowProblem


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one row, or about a whole file.

    Attributes:
        dataset: the data set's name.
        problem: where it stands, what it is, and what to do.
        is_error: whether training leaves the row out; the others are worth a look.
    """

    dataset: str
    problem: RowProblem
    is_error: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a place without a line is a whole file."""
        file, _, line = self.problem.origin.rpartition(":")
        is_row = bool(file) and line.isdecimal()
        return {
            "dataset": self.dataset,
            "file": file if is_row else self.problem.origin,
            "line": int(line) if is_row else None,
            "character": self.problem.position or None,
            "column": self.problem.field or None,
            "kind": self.problem.reason,
            "severity": "error" if self.is_error else "note",
            "found": self.problem.found.strip(" :()") or None,
            "excerpt": self.problem.excerpt,
            "mend": self.problem.fix,
        }


@dataclass
class Kind:
    """All findings of one kind.

    Attributes:
        column: the column, without the numbers of messages.
        reason: what is wrong with it.
        is_error: whether training leaves such rows out.
        count: how many there are.
        findings: the first of them.
    """

    column: str
    reason: str
    is_error: bool
    count: int = 0
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.column}: {self.reason}" if self.column else self.reason

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": self.reason,
            "column": self.column or None,
            "severity": "error" if self.is_error else "note",
            "count": self.count,
            "mend": self.findings[0].problem.fix,
        }


class Findings:
    """Counts all findings and keeps the first of each kind.

    Args:
        most: how many of a kind are kept; None for all.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._kinds: dict[tuple[bool, str, str], Kind] = {}

    def error(self, dataset: str, problem: RowProblem) -> None:
        """A row that training leaves out, or a file that it refuses."""
        self._add(Finding(dataset, problem))

    def note(self, dataset: str, problem: RowProblem) -> None:
        """Something that training takes as it is."""
        self._add(Finding(dataset, problem, is_error=False))

    def kinds(self, *, errors: bool) -> list[Kind]:
        """The kinds of errors, or of notes, the most frequent first."""
        found = [kind for kind in self._kinds.values() if kind.is_error is errors]
        return sorted(found, key=lambda kind: -kind.count)

    def count(self, *, errors: bool) -> int:
        """How many errors, or notes, there are."""
        return sum(kind.count for kind in self.kinds(errors=errors))

    def __iter__(self) -> Iterator[Finding]:
        for kind in (*self.kinds(errors=True), *self.kinds(errors=False)):
            yield from kind.findings

    def _add(self, finding: Finding) -> None:
        problem = finding.problem
        key = (finding.is_error, problem.column, problem.reason)
        kind = self._kinds.setdefault(key, Kind(problem.column, problem.reason, finding.is_error))
        kind.count += 1
        if self.most is None or len(kind.findings) < self.most:
            kind.findings.append(finding)
