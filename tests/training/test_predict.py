from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch

from luthier.arguments.generating import GeneratingArguments
from luthier.errors import ArgumentsError
from luthier.example import ExampleSet
from luthier.generating.journal import Journal
from luthier.records import IGNORE_INDEX
from luthier.training.predict import Asking, predict_with_generate, write_predictions
from luthier.training.scores import find_metric, own_scores
from tests import tiny
from tests.generating.test_generator import alone as answer_alone
from tests.generating.test_generator import make_prompts

STOP = (2,)


def run_arguments(**overrides: object) -> SimpleNamespace:
    return SimpleNamespace(
        generating=GeneratingArguments(**({"do_sample": False, "max_new_tokens": 12} | overrides)),
        training=SimpleNamespace(per_device_eval_batch_size=4, seed=42, limit=None, metric=None),
        data=SimpleNamespace(eval_num_beams=None),
        model=SimpleNamespace(use_kv_cache=True),
    )


def test_files_and_metrics_follow_the_rows(tmp_path: Path, tiny_tokenizer) -> None:
    model = tiny.make_llama()
    prompts = make_prompts(9)
    alone = [answer_alone(model, prompt, STOP) for prompt in prompts]
    dataset = datasets.Dataset.from_dict(
        {"input_ids": prompts, "labels": [[IGNORE_INDEX, *answer, 2] for answer in alone]}
    )

    metrics = predict_with_generate(
        tmp_path, model, tiny_tokenizer, {"": ExampleSet(dataset)}, run_arguments(), STOP
    )

    lines = (tmp_path / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["prompt"] for row in rows] == tiny_tokenizer.batch_decode(prompts)
    assert all(row["predict"] == row["label"] for row in rows)
    assert metrics["predict_rouge-1"] > 0
    assert metrics["predict_bleu-4"] > 0
    assert metrics.keys() == {
        "predict_bleu-4",
        "predict_rouge-1",
        "predict_rouge-2",
        "predict_rouge-l",
        "predict_exact_match",
        "predict_runtime",
        "predict_samples_per_second",
    }


def test_named_sets_keep_their_own_files_and_metrics(tmp_path: Path, tiny_tokenizer) -> None:
    dataset = datasets.Dataset.from_dict({"input_ids": [[5, 6]], "labels": [[7, 2]]})

    metrics = predict_with_generate(
        tmp_path,
        tiny.make_llama(),
        tiny_tokenizer,
        {name: ExampleSet(dataset) for name in ("first", "second")},
        run_arguments(),
        STOP,
    )

    assert {"predict_first_bleu-4", "predict_second_bleu-4"} <= metrics.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "generated_predictions_first.jsonl",
        "generated_predictions_second.jsonl",
    ]


def test_stop_tokens_are_shown_only_when_special_tokens_are(tmp_path: Path, tiny_tokenizer) -> None:
    model = tiny.make_llama()
    stop = (answer_alone(model, [5, 6], STOP)[1],)  # an ordinary token
    word = tiny_tokenizer.decode(stop)
    dataset = datasets.Dataset.from_dict({"input_ids": [[5, 6]], "labels": [[7, 2]]})

    shown = {}
    for skip in (True, False):
        arguments = run_arguments(skip_special_tokens=skip)
        predict_with_generate(
            tmp_path, model, tiny_tokenizer, {"": ExampleSet(dataset)}, arguments, stop
        )
        text = (tmp_path / "generated_predictions.jsonl").read_text(encoding="utf-8")
        shown[skip] = json.loads(text)

    assert shown[False]["predict"] == shown[True]["predict"] + word
    assert shown[False]["label"].endswith("<|im_end|>")
    assert "<|im_end|>" not in shown[True]["label"]


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    row = {"prompt": "Wer bist\ndu?", "predict": "我是", "label": '"x"'}

    path = write_predictions(tmp_path / "new", [row])

    text = path.read_text(encoding="utf-8")
    assert "我是" in text
    assert json.loads(text) == row
    assert [file.name for file in path.parent.iterdir()] == ["generated_predictions.jsonl"]


def make_asking(model: Any, tokenizer: Any, **overrides: object) -> Asking:
    return Asking(model, tokenizer, run_arguments(**overrides), STOP)


@pytest.mark.parametrize("sampled", [{}, {"do_sample": True, "num_return_sequences": 3}])
def test_a_prediction_goes_on_behind_the_answers_it_has(
    sampled: dict[str, object], tmp_path: Path, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = make_prompts(7)
    model = tiny.make_llama()
    whole = make_asking(model, tiny_tokenizer, **sampled).answers(prompts)
    path, asked = tmp_path / "generated_predictions.jsonl", []

    class Killed(Exception):
        pass

    def stop_after(count: int) -> Asking:
        asking = make_asking(model, tiny_tokenizer, **sampled)
        answer = asking.generator.answer

        def cut(requests: Any) -> Any:
            for done, (number, found) in enumerate(answer(requests)):
                if done == count:
                    raise Killed
                asked.append((*requests[number].prompt, requests[number].sampling.seed))
                yield number, found

        monkeypatch.setattr(asking.generator, "answer", cut)
        return asking

    for _ in range(2):
        asking = stop_after(2)
        with pytest.raises(Killed):
            asking.answers(prompts, Journal(path, asking.identity(prompts)))
        (file,) = tmp_path.glob("generated_predictions.*.journal-0.jsonl")
        file.write_bytes(file.read_bytes() + b'{"row": 6, "num')  # what a kill leaves of a line
    asking = stop_after(10**6)
    journal = Journal(path, asking.identity(prompts))

    assert asking.answers(prompts, journal) == whole
    assert len(asked) == len({*asked}) == len(prompts) * asking.num_each
    journal.end()
    assert not [*tmp_path.iterdir()]


def test_answers_of_other_weights_or_settings_are_told_and_left(
    tmp_path: Path, tiny_tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, path = make_prompts(3), tmp_path / "generated_predictions.jsonl"
    model = tiny.make_llama()
    first = make_asking(model, tiny_tokenizer)
    first.answers(prompts, Journal(path, first.identity(prompts)))
    with torch.no_grad():
        model.lm_head.weight *= 1.01
    capsys.readouterr()

    changed = make_asking(model, tiny_tokenizer, temperature=0.5)
    found = changed.answers(prompts, Journal(path, changed.identity(prompts)))

    said = " ".join(capsys.readouterr().err.split())
    assert "holds 3 answers that were made with other weights and other settings" in said
    assert len(found) == 3
    assert len([*tmp_path.iterdir()]) == 2


def test_a_function_of_ones_own_scores_and_a_wrong_one_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = """
def same(predictions, labels):
    return sum(map(str.__eq__, predictions, labels))

def several(predictions, labels):
    return {"longest": max(map(len, predictions)), "rows": len(labels)}

def wrong(predictions, labels):
    return "good"
"""
    Path("own_scores_of_a_test.py").write_text(text)
    given = (["a", "bc"], ["a", "d"])

    assert own_scores("own_scores_of_a_test:same", *given) == {"same": 1.0}
    assert own_scores("own_scores_of_a_test:several", *given) == {"longest": 2.0, "rows": 2.0}
    with pytest.raises(ArgumentsError, match="gave str; expected a number"):
        own_scores("own_scores_of_a_test:wrong", *given)
    for name in ("own_scores_of_a_test:absent", "own_scores_of_a_test", "no_such_module:f"):
        with pytest.raises(ArgumentsError, match=f"metric: '{name}' cannot be taken"):
            find_metric(name)
