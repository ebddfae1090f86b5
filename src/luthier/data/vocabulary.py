"""words, as bytes of a text, with the ids of each: found many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

LONGEST = 1024
"""Bytes of the longest word that is kept. Ids of longer ones are not asked for here."""

MOST_WORDS, MOST_IDS = 250_000, 4_000_000
"""How many are kept, and how many ids of theirs, before all are forgotten; about 50 MB."""


class Vocabulary:
    """A table from words to ids that is asked for whole arrays of words.

    A word is known by two sums of its bytes, each times a random 64-bit number for its place, so
    two words are taken for one with a chance below 2^-100. The table is one of open addressing.
    """

    def __init__(self) -> None:
        import numpy

        self._count = 0
        self._sums = numpy.zeros((2, 1024), numpy.uint64)
        self._starts = numpy.zeros(1025, numpy.int64)
        self._ids = numpy.zeros(4096, numpy.int32)
        self._slots = numpy.full(4096, -1, numpy.int32)

    @property
    def is_full(self) -> bool:
        """Whether it is time to begin with an empty one."""
        return self._count > MOST_WORDS or int(self._starts[self._count]) > MOST_IDS

    def find(self, sums: Any) -> Any:
        """The number of each word, of which `sum_words` gave the sums; -1 where it is not known."""
        import numpy

        first, second = sums
        mask = numpy.uint64(len(self._slots) - 1)
        places = _spread(first) & mask
        found = numpy.full(len(first), -1, numpy.int64)
        waiting = numpy.arange(len(first))
        while len(waiting):
            numbers = self._slots[places]
            is_hit = (numbers >= 0) & (self._sums[0][numbers] == first[waiting])
            is_hit &= self._sums[1][numbers] == second[waiting]
            found[waiting[is_hit]] = numbers[is_hit]
            is_open = (numbers >= 0) & ~is_hit
            waiting, places = waiting[is_open], (places[is_open] + numpy.uint64(1)) & mask
        return found

    def add(self, words: Sequence[str], ids: Any, counts: Any) -> None:
        """Takes in words that are not known.

        Args:
            words: each once.
            ids: of all of them, one after the other.
            counts: how many each has.
        """
        import numpy

        encoded = [word.encode("utf-8", errors="surrogatepass") for word in words]
        lengths = numpy.array([*map(len, encoded)], numpy.int64)
        sums = sum_words(b"".join(encoded), numpy.cumsum(lengths) - lengths)
        count = self._count + len(words)
        num_ids = int(self._starts[self._count])
        if count >= len(self._sums[0]):
            self._sums = _grown(self._sums, count)
            self._starts = _grown(self._starts[None], count + 1)[0]
        if num_ids + len(ids) > len(self._ids):
            self._ids = _grown(self._ids[None], num_ids + len(ids))[0]
        self._sums[:, self._count : count] = sums
        self._ids[num_ids : num_ids + len(ids)] = ids
        ends = num_ids + numpy.cumsum(counts, dtype=numpy.int64)
        self._starts[self._count + 1 : count + 1] = ends
        if 3 * count > len(self._slots):
            self._slots = numpy.full(1 << (6 * count).bit_length(), -1, numpy.int32)
            self._place(0, count)
        else:
            self._place(self._count, count)
        self._count = count

    def ids_of(self, numbers: Any) -> tuple[Any, Any]:
        """The ids of words, one after the other, and where those of each begin; the end is last.

        A word of number -1 gives none.
        """
        import numpy

        counts = self._starts[numbers + 1] - self._starts[numbers]
        counts[numbers < 0] = 0
        begins = numpy.concatenate([[0], numpy.cumsum(counts)])
        shift = numpy.repeat(self._starts[numbers] - begins[:-1], counts)
        return self._ids[shift + numpy.arange(begins[-1])], begins

    def _place(self, first: int, last: int) -> None:
        mask = len(self._slots) - 1
        slots, places = self._slots, _spread(self._sums[0][first:last]).tolist()
        for number, place in enumerate(places, first):
            place &= mask
            while slots[place] >= 0:
                place = (place + 1) & mask
            slots[place] = number


def sum_words(content: bytes, starts: Any) -> Any:
    """The two sums of each word; those of words over `LONGEST` bytes mean nothing."""
    import numpy

    if not len(starts):
        return numpy.zeros((2, 0), numpy.uint64)
    lengths = numpy.diff(numpy.append(starts, len(content)))
    places = numpy.arange(len(content)) - numpy.repeat(starts, lengths)
    numpy.minimum(places, LONGEST - 1, out=places)
    letters = numpy.frombuffer(content, numpy.uint8).astype(numpy.uint64) + numpy.uint64(1)
    return numpy.stack([numpy.add.reduceat(letters * some[places], starts) for some in _factors()])


def _spread(sums: Any) -> Any:
    """The high bits, which depend on all bytes."""
    import numpy

    return sums >> numpy.uint64(40)


@cache
def _factors() -> Any:
    import numpy

    chance = numpy.random.default_rng(20240229)
    return chance.integers(1 << 63, size=(2, LONGEST), dtype=numpy.uint64) * numpy.uint64(
        2
    ) + numpy.uint64(1)


def _grown(rows: Any, least: int) -> Any:
    """The same rows with room for more."""
    import numpy

    more = numpy.zeros((len(rows), 2 * least), rows.dtype)
    more[:, : rows.shape[1]] = rows
    return more
