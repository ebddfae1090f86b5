"""How like the wanted texts the predicted ones are: exact, BLEU-4, ROUGE, or by one's own."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from luthier.errors import ArgumentsError
from luthier.optional import need

SCORES = ("bleu-4", "rouge-1", "rouge-2", "rouge-l", "exact_match")
"""What `score_texts` gives, by the names that predict_results.json has them under."""

FEATURE = "predict_with_generate"


def score_texts(
    predictions: Sequence[str], labels: Sequence[str], metric: str | None = None
) -> dict[str, float]:
    """Means over all rows of BLEU-4, the F-scores of ROUGE-1, ROUGE-2, ROUGE-L, exact matches.

    Exact are texts that are equal but for space around them. A `metric`, see `find_metric`, adds
    its own.

    BLEU-4 (Papineni et al. 2002) counts n-grams of characters with the third smoothing of Chen and
    Cherry (2014); ROUGE (Lin 2004) counts words, which jieba finds in Chinese and other text alike.
    Both as in LLaMA-Factory's predict_results.json, so numbers compare. An empty text scores 0.
    They are percent, rounded to 4 digits row by row; without rows there are none.

    Raises:
        MissingPackage: if the extra `metrics` is not installed.
    """
    bleu = need("nltk.translate.bleu_score", FEATURE)
    jieba = need("jieba", FEATURE)
    jieba.setLogLevel(logging.WARNING)  # it tells how long its dictionary took to load
    rouge = need("rouge_chinese", FEATURE).Rouge()
    smoothing = bleu.SmoothingFunction().method3
    rows = []
    for prediction, label in zip(predictions, labels, strict=True):
        matched = bleu.sentence_bleu([list(label)], list(prediction), smoothing_function=smoothing)
        row = {"bleu-4": 100 * float(matched)} | _rouge(
            rouge, list(jieba.cut(prediction)), list(jieba.cut(label))
        )
        row["exact_match"] = 100.0 * (prediction.strip() == label.strip())
        rows.append({name: round(row[name], 4) for name in SCORES})
    count = len(rows)
    scores = {name: round(sum(row[name] for row in rows) / count, 4) for name in SCORES if rows}
    return scores | (own_scores(metric, predictions, labels) if metric and rows else {})


def find_metric(metric: str) -> Callable[[list[str], list[str]], Any]:
    """The function that `PACKAGE.MODULE:FUNCTION` names, also in the folder one is in.

    Raises:
        ArgumentsError: if it cannot be had.
    """
    module, _, name = metric.partition(":")
    try:
        with _here_first():
            found = getattr(importlib.import_module(module), name or "")
    except (ImportError, AttributeError, ValueError) as problem:
        raise ArgumentsError(
            [
                f"metric: {metric!r} cannot be taken: {problem}. Expected is MODULE:FUNCTION, such "
                "as my_scores:accuracy for accuracy(predictions, labels) in my_scores.py here."
            ]
        ) from problem
    return cast("Callable[[list[str], list[str]], Any]", found)


def own_scores(metric: str, predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """What a user's function says of all texts: a number, or several by name.

    Raises:
        ArgumentsError: if it says something else.
    """
    said = find_metric(metric)(list(predictions), list(labels))
    scores = said if isinstance(said, Mapping) else {metric.rpartition(":")[2]: said}
    try:
        return {str(name): float(value) for name, value in scores.items()}
    except (TypeError, ValueError) as problem:
        raise ArgumentsError(
            [
                f"metric: {metric} gave {type(said).__name__}; expected a number, or a mapping of "
                "names to numbers. The predictions are written."
            ]
        ) from problem


@contextmanager
def _here_first() -> Iterator[None]:
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())


def _rouge(rouge: Any, prediction: Sequence[str], label: Sequence[str]) -> dict[str, float]:
    texts = " ".join(prediction), " ".join(label)
    if not all(text.split() for text in texts):
        return dict.fromkeys(("rouge-1", "rouge-2", "rouge-l"), 0.0)
    (scores,) = rouge.get_scores(*texts)
    return {name: 100 * float(score["f"]) for name, score in scores.items()}
