"""which rows of which data set are used, and in what order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.errors import DataError

if TYPE_CHECKING:
    import datasets

_NUMBERS_TOGETHER = 100_000

_STRATEGIES = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}


def draw_rows(num_rows: int, num_samples: int, max_samples: int | None, seed: int) -> Any:
    """The numbers of the rows that `num_samples` draws.

    Args:
        num_rows: how many rows there are.
        num_samples: how many to draw in random order, each once before any is drawn again.
        max_samples: the most of them to keep, from the start; None for all.
        seed: where the drawing starts.

    Returns:
        An int64 array.
    """
    import numpy

    if not num_rows:
        return numpy.zeros(0, numpy.int64)
    generator = numpy.random.default_rng(seed)
    drawn = generator.permutation(num_rows)[:num_samples]
    more = generator.integers(num_rows, size=num_samples - len(drawn))
    return numpy.concatenate([drawn, more])[:max_samples]


def place_drawn(rows: Any, drawn: Any) -> Any:
    """Where in a data set the drawn rows stand, in the order in which they were drawn.

    Args:
        rows: the row number of each example, ascending; several where a row was split.
        drawn: the numbers that were drawn; those that gave no example have no place.
    """
    import numpy

    starts = numpy.searchsorted(rows, drawn, side="left")
    counts = numpy.searchsorted(rows, drawn, side="right") - starts
    before = numpy.concatenate([[0], numpy.cumsum(counts)[:-1]]) if len(counts) else counts
    within = numpy.arange(counts.sum()) - numpy.repeat(before, counts)
    return numpy.repeat(starts, counts) + within


def mix(lengths: Sequence[int], strategy: str, shares: Sequence[float], seed: int) -> Any:
    """The order of several data sets' rows in one.

    Args:
        lengths: of the data sets, at least one.
        strategy: the value of `mix_strategy`.
        shares: how often each is drawn from when interleaving; empty for taking turns.
        seed: where the drawing starts.

    Returns:
        An int64 array: where each row stands when the sets stand one after the other.

    Raises:
        DataError: if shares are not one for each set, or do not make a distribution.
    """
    import datasets
    import numpy

    if strategy == "concat" or len(lengths) == 1:
        return numpy.arange(sum(lengths))
    if shares and (len(shares) != len(lengths) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
        raise DataError(
            f"interleave_probs: {', '.join(f'{share:g}' for share in shares)} are not the shares "
            f"of {len(lengths)} data sets: one each is expected, none negative, 1 together."
        )
    # Numbers are mixed, not rows: beside rows on disk, `datasets` would write index files.
    starts = numpy.cumsum([0, *lengths])
    mixed = datasets.interleave_datasets(
        [_numbers(start, start + length) for start, length in zip(starts, lengths, strict=False)],
        probabilities=list(shares) or None,
        seed=seed,
        stopping_strategy=_STRATEGIES[strategy],
    )
    return column_of(mixed, "at")


def split(rows: Any, val_size: float, seed: int) -> tuple[Any, Any]:
    """The places to train on and those to evaluate on, shuffled as `datasets` does it.

    Args:
        rows: the number of the row that stands at each place; where a row stands in several, all
            of them go the same way.
        val_size: a share below 1 of the different rows, else a number of them.
        seed: where the shuffling starts.

    Returns:
        Two int64 arrays of places.

    Raises:
        DataError: if one of the two would be empty.
    """
    import numpy

    shuffled = numpy.random.default_rng(seed).permutation(len(rows))
    rows = rows[shuffled]
    first = numpy.sort(numpy.unique(rows, return_index=True)[1])
    num_kept = math.ceil(val_size * len(first)) if val_size < 1 else int(val_size)
    if num_kept >= len(first):
        raise DataError(
            f"val_size {val_size:g} of {len(first):,} rows leaves nothing to train on. Lower it, "
            "or give an eval_dataset."
        )
    is_kept = numpy.isin(rows, rows[first[:num_kept]])
    return shuffled[~is_kept], shuffled[is_kept]


def _numbers(start: int, end: int) -> datasets.Dataset:
    import datasets
    import numpy

    return datasets.Dataset.from_dict({"at": numpy.arange(start, end)})


def column_of(dataset: datasets.Dataset, name: str) -> Any:
    """A column of numbers as an array, without a Python object for each of them."""
    import numpy

    parts = dataset.select_columns([name]).with_format("arrow").iter(_NUMBERS_TOGETHER)
    return numpy.concatenate([part[name].to_numpy() for part in parts] or [numpy.zeros(0, int)])
