"""what is wrong with a row, and how many wrong rows a data set may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.errors import DataError
from luthier.records import Origin

NUM_LISTED = 10
"""How many wrong rows a message shows."""


class RowError(DataError):
    """A row cannot be used.

    Args:
        field: the column, or a path into it such as `messages[2].role`; empty for the whole row.
        reason: what was found, in words that do not depend on the row, so that rows can be
            counted by it.
        fix: what to do.
        found: the row's own part of the reason.
    """

    def __init__(self, field: str, reason: str, fix: str, found: str = "") -> None:
        self.field, self.reason, self.fix, self.found = field, reason, fix, found
        super().__init__(f"{field}: {reason}{found}. {fix}")


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that is left out, where it stands and why."""

    origin: str
    field: str
    reason: str
    fix: str
    found: str = ""

    @classmethod
    def of(cls, origin: Origin | None, error: RowError) -> RowProblem:
        """The problem that `error` tells of the row at `origin`."""
        return cls(str(origin or ""), error.field, error.reason, error.fix, error.found)

    def __str__(self) -> str:
        place = f"{self.origin}, {self.field}" if self.field else self.origin
        return f"{place}: {self.reason}{self.found}. {self.fix}".rstrip()


def count_reasons(problems: Sequence[RowProblem]) -> dict[str, int]:
    """How many rows each reason costs, the most frequent first."""
    return dict(
        Counter(f"{p.field}: {p.reason}" if p.field else p.reason for p in problems).most_common()
    )


def check_budget(
    name: str, num_rows: int, reasons: dict[str, int], listed: Sequence[str], max_bad_rows: float
) -> None:
    """Ends the run when more rows are wrong than the budget allows.

    Args:
        name: the data set.
        num_rows: its rows, the wrong ones included.
        reasons: how many rows each reason costs.
        listed: the first wrong rows as text.
        max_bad_rows: a share of the rows below 1, else a number of rows.

    Raises:
        DataError: with the first rows and the counts.
    """
    num_bad = sum(reasons.values())
    allowed = max_bad_rows * num_rows if max_bad_rows < 1 else max_bad_rows
    if num_bad <= allowed:
        return
    shown = "\n".join(f"  {text}" for text in listed[:NUM_LISTED])
    counts = "\n".join(f"  {count:,} x {reason}" for reason, count in reasons.items())
    budget = f"{max_bad_rows:.3g} of them" if max_bad_rows < 1 else f"{max_bad_rows:,.0f}"
    raise DataError(
        f"data set {name!r}: {num_bad:,} of {num_rows:,} rows cannot be used; max_bad_rows allows "
        f"{budget}.\n{shown}\nCounts:\n{counts}\nMend the rows, or raise max_bad_rows."
    )
