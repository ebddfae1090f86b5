from __future__ import annotations

import pytest

from luthier.errors import MissingPackage
from luthier.training import scores
from luthier.training.scores import SCORES, score_texts


def test_equal_texts_score_a_hundred() -> None:
    text = "The neck is carved from maple and the belly from spruce."

    assert score_texts([text], [text]) == dict.fromkeys(SCORES, 100.0)


@pytest.mark.parametrize(("prediction", "label"), [("", "glue"), ("glue", ""), (" \n ", "x y")])
def test_an_empty_text_has_no_words_in_common(prediction: str, label: str) -> None:
    scores = score_texts([prediction], [label])

    assert [scores[name] for name in SCORES if name.startswith("rouge")] == [0.0, 0.0, 0.0]


def test_an_empty_prediction_scores_nothing() -> None:
    scores = score_texts(["", ""], ["glue", ""])

    assert scores == dict.fromkeys(SCORES, 0.0) | {"exact_match": 50.0}  # nothing was wanted


def test_chinese_is_compared_by_words_and_not_by_blanks() -> None:
    same_words = score_texts(["苹果我喜欢"], ["我喜欢苹果"])

    assert same_words["rouge-1"] == 100.0
    assert same_words["rouge-2"] < 100.0


def test_rouge_1_is_the_f_score_of_words() -> None:
    # two of two predicted words among four wanted ones: precision 1, recall 1/2
    scores = score_texts(["maple spruce"], ["maple spruce ebony glue"])

    assert scores["rouge-1"] == pytest.approx(100 * 2 / 3, abs=1e-3)


def test_scores_are_means_over_rows() -> None:
    rows = [("warm the glue", "warm the hide glue"), ("bow", "a bow"), ("", "x")]

    together = score_texts(*zip(*rows, strict=True))

    alone = [score_texts([prediction], [label]) for prediction, label in rows]
    for name in SCORES:
        assert together[name] == pytest.approx(sum(row[name] for row in alone) / 3, abs=1e-4)


def test_full_stops_alone_are_words_like_any_other() -> None:
    assert score_texts(["."], ["ok."])["rouge-1"] > 0


def test_no_rows_give_no_numbers() -> None:
    assert score_texts([], []) == {}


def test_nothing_is_said_while_the_dictionary_loads(capfd: pytest.CaptureFixture[str]) -> None:
    score_texts(["我喜欢"], ["苹果"])

    assert capfd.readouterr() == ("", "")


def test_an_absent_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.optional.is_installed", lambda module: False)

    with pytest.raises(MissingPackage, match=r"luthier\[metrics\]"):
        scores.score_texts(["a"], ["b"])
