"""How like the wanted texts the predicted ones are: BLEU-4 and ROUGE, in percent."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from luthier.optional import need

SCORES = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")
"""What `score_texts` gives, by the names that predict_results.json has them under."""

FEATURE = "predict_with_generate"


def score_texts(predictions: Iterable[str], labels: Iterable[str]) -> dict[str, float]:
    """Means over all rows of BLEU-4 and the F-scores of ROUGE-1, ROUGE-2 and ROUGE-L, by `SCORES`.

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
        rows.append({name: round(row[name], 4) for name in SCORES})
    count = len(rows)
    return {name: round(sum(row[name] for row in rows) / count, 4) for name in SCORES if rows}


def _rouge(rouge: Any, prediction: Sequence[str], label: Sequence[str]) -> dict[str, float]:
    texts = " ".join(prediction), " ".join(label)
    if not all(text.split() for text in texts):
        return dict.fromkeys(("rouge-1", "rouge-2", "rouge-l"), 0.0)
    (scores,) = rouge.get_scores(*texts)
    return {name: 100 * float(score["f"]) for name, score in scores.items()}
