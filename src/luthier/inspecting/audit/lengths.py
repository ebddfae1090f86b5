"""how many tokens rows have, and what a cutoff_len costs."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from luthier.example import Example
from luthier.records import Origin

ENOUGH = 0.99
"""The share of rows left whole, and of tokens kept, that a recommended cutoff_len reaches."""

ROUND_TO = 8
WIDTH = 40


@dataclass
class Lengths:
    """The lengths of the rows that can be learned from, before anything is cut.

    Attributes:
        cutoff_len: the one of the configuration; None where rows are put into blocks of that
            length, which loses nothing.
        tokens: the length of each row.
        num_learned: tokens that are learned, as many as fit.
        num_cut: rows that are longer.
        num_lost: the tokens they lose.
        most: the tokens of the longest row.
        longest: where that stands.
    """

    cutoff_len: int | None
    tokens: array[int] = field(default_factory=lambda: array("q"))
    num_learned: int = 0
    num_cut: int = 0
    num_lost: int = 0
    most: int = 0
    longest: Origin | None = None

    def add(self, num_tokens: int, origin: Origin | None) -> None:
        """Takes in a row."""
        if not self.tokens or num_tokens > self.most:
            self.longest, self.most = origin, num_tokens
        self.tokens.append(num_tokens)

    def add_learned(self, example: Example) -> None:
        """Takes in what is learned of a row, or of a part of it, after cutting."""
        self.num_learned += example.num_units

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
        total, count = self.total(), len(self.tokens)
        yield f"{count:,} rows, {self.line()}"
        bars = self.histogram()
        highest = max(count for _, count in bars)
        for end, rows in bars:
            bar = "#" * (-(-rows * WIDTH // highest))
            yield f"up to {end:>9,} | {bar:<{WIDTH}} {rows:,}"
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
