"""which rows of which data set are used, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.errors import DataError

if TYPE_CHECKING:
    import datasets

_STRATEGIES = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}


def pick_rows(
    num_rows: int, num_samples: int | None, max_samples: int | None, seed: int
) -> list[int]:
    """The numbers of the rows that a data set gives.

    Args:
        num_rows: how many it has.
        num_samples: how many to draw in random order, each once before any is drawn again; None
            for all in their order.
        max_samples: the most of them to keep, from the start; None for all.
        seed: where the drawing starts.
    """
    import numpy

    picked = list(range(num_rows))
    if num_samples is not None and num_rows:
        generator = numpy.random.default_rng(seed)
        drawn = generator.permutation(num_rows)[:num_samples].tolist()
        more = generator.integers(num_rows, size=num_samples - len(drawn)).tolist()
        picked = drawn + more
    return picked if max_samples is None else picked[:max_samples]


def mix(
    sets: Sequence[datasets.Dataset], strategy: str, shares: Sequence[float], seed: int
) -> datasets.Dataset:
    """One data set of several.

    Args:
        sets: at least one, of the same columns.
        strategy: the value of `mix_strategy`.
        shares: how often each is drawn from when interleaving; empty for taking turns.
        seed: where the drawing starts.

    Raises:
        DataError: if shares are not one for each set, or do not make a distribution.
    """
    import datasets

    if len(sets) == 1:
        return sets[0]
    if strategy == "concat":
        return datasets.concatenate_datasets(list(sets))
    if shares and (len(shares) != len(sets) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
        raise DataError(
            f"interleave_probs: {', '.join(f'{share:g}' for share in shares)} are not the shares "
            f"of {len(sets)} data sets: one each is expected, none negative, 1 together."
        )
    return datasets.interleave_datasets(
        list(sets),
        probabilities=list(shares) or None,
        seed=seed,
        stopping_strategy=_STRATEGIES[strategy],
    )


def split(
    dataset: datasets.Dataset, val_size: float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The rows to train on and those kept for evaluation, shuffled as `datasets` does it.

    Args:
        dataset: all rows.
        val_size: a share below 1, else a number of rows.
        seed: where the shuffling starts.

    Raises:
        DataError: if one of the two would be empty.
    """
    import datasets

    kept = val_size if val_size < 1 else int(val_size)
    if (val_size >= 1 and val_size >= len(dataset)) or len(dataset) < 2:
        raise DataError(
            f"val_size {val_size:g} of {len(dataset):,} rows leaves nothing to train on. Lower it, "
            "or give an eval_dataset."
        )
    # Numbers are split, not rows: beside rows on disk, `datasets` would write index files.
    numbers = datasets.Dataset.from_dict({"at": range(len(dataset))})
    parts = numbers.train_test_split(test_size=kept, seed=seed, shuffle=True)
    return dataset.select(list(parts["train"]["at"])), dataset.select(list(parts["test"]["at"]))
