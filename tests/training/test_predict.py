from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import datasets

from luthier.arguments.generating import GeneratingArguments
from luthier.example import ExampleSet
from luthier.records import IGNORE_INDEX
from luthier.training.predict import predict_with_generate, write_predictions
from tests import tiny
from tests.generating.test_generator import alone as answer_alone
from tests.generating.test_generator import make_prompts

STOP = (2,)


def run_arguments(**overrides: object) -> SimpleNamespace:
    return SimpleNamespace(
        generating=GeneratingArguments(**({"do_sample": False, "max_new_tokens": 12} | overrides)),
        training=SimpleNamespace(per_device_eval_batch_size=4),
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
