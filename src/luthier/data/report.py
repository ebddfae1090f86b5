"""what became of the rows: counts, reasons and hashes, for the console and run.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class SetReport:
    """What became of one data set's rows.

    Attributes:
        name: as the user calls it.
        purpose: "learn", or "answer" for prompts to generate from.
        format: the formatting.
        detected: what was detected, as a line; empty when it was described.
        hashes: file -> sha256 of its bytes; for the hub its name and fingerprint.
        num_read: rows taken from the files, wrong ones included.
        num_kept: rows that can be used.
        skipped: reason -> rows left out for it.
        problems: the first rows left out, as text.
        remarks: what rows had that is not learned from -> how many rows.
        num_rows_cut: rows that lost tokens to cutoff_len.
        num_tokens_cut: the tokens they lost.
        num_tokens: tokens kept.
        num_learned: tokens that are learned.
        key: the name of the cache folder.
        was_cached: whether it came from there.
    """

    name: str
    purpose: str = "learn"
    format: str = ""
    detected: str = ""
    hashes: dict[str, str] = field(default_factory=dict)
    num_read: int = 0
    num_kept: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: dict[str, int] = field(default_factory=dict)
    num_rows_cut: int = 0
    num_tokens_cut: int = 0
    num_tokens: int = 0
    num_learned: int = 0
    key: str = ""
    was_cached: bool = False

    @property
    def num_skipped(self) -> int:
        """Rows left out, for whatever reason."""
        return sum(self.skipped.values())

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
        for remark, count in self.remarks.items():
            yield f"{label}: {count:,} x {remark}"

    def warnings(self) -> Iterator[str]:
        """What the reader can act on."""
        if self.skipped:
            counts = "; ".join(f"{count:,} x {reason}" for reason, count in self.skipped.items())
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
                "them."
            )


@dataclass
class DataReport:
    """What a run keeps about its data.

    Attributes:
        sets: one for each data set and purpose.
        num_train: rows to train on.
        num_eval: rows to evaluate on, by the name of the set.
        num_predict: prompts to answer, by the name of the set.
    """

    sets: list[SetReport] = field(default_factory=list)
    num_train: int = 0
    num_eval: dict[str, int] = field(default_factory=dict)
    num_predict: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
