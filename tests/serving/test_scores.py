"""a reward model is served: what it scores is what predict writes"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("openai", reason="needs luthier[api]")
pytest.importorskip("fastapi", reason="needs luthier[api]")

import luthier
from luthier.arguments.record import Arguments
from luthier.commands.chat import read_arguments
from luthier.errors import ArgumentsError
from luthier.serving.asking import Served
from luthier.serving.models import load_models
from luthier.serving.run_folder import RUN_RECORD
from luthier.serving.scores import MOST_TOKENS, _batches
from tests.serving.served import make_engine, serving
from tests.serving.test_server import CHAT, ask, error_of
from tests.stages.test_rm import make_rows

ROWS = make_rows(12, 3)


@pytest.fixture(scope="module")
def run(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rm")
    (folder / "rows.json").write_text(json.dumps(ROWS))
    output = folder / "rewards"
    luthier.train(
        {
            "stage": "rm",
            "model_name_or_path": str(llama_folder),
            "template": "qwen",
            "do_train": True,
            "do_predict": True,
            "dataset": str(folder / "rows.json"),
            "eval_dataset": str(folder / "rows.json"),
            "output_dir": str(output),
            "learning_rate": 1e-2,
            "max_steps": 3,
            "save_strategy": "no",
            "report_to": "none",
            "plot_loss": False,
        }
    )
    return output


def arguments_of(folder: Path) -> Arguments:
    return read_arguments([str(folder)])


@pytest.fixture(scope="module")
def models(run: Path) -> list[Served]:
    return load_models([arguments_of(run)], [run])


@pytest.fixture(scope="module")
def address(models: list[Served]) -> Iterator[str]:
    with serving(models[0].engine, *models) as address:
        yield address


def talk(row: dict[str, str], answer: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": row["instruction"]},
        {"role": "assistant", "content": row[answer]},
    ]


def score(address: str, messages: Any, route: str = "/v1/score", **fields: Any) -> dict[str, Any]:
    status, _, text = ask(address, route, {"model": "rewards", "messages": messages} | fields)
    assert status == 200, text
    found: dict[str, Any] = json.loads(text)
    return found


def test_scores_are_those_of_predict(address: str, run: Path) -> None:
    lines = (run / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    written = [json.loads(line) for line in lines]
    talks = [talk(row, answer) for row in ROWS for answer in ("chosen", "rejected")]

    found = score(address, talks)

    expected = [row[answer] for row in written for answer in ("chosen", "rejected")]
    assert len({round(one, 3) for one in expected}) > 12
    assert found["scores"] == pytest.approx(expected, abs=1e-5)
    assert found["model"] == "rewards"
    assert score(address, talks[0])["scores"] == pytest.approx(expected[:1], abs=1e-5)


def test_whole_texts_are_scored_as_llama_factory_scores_them(
    address: str, models: list[Served]
) -> None:
    engine = models[0].engine
    texts = [
        engine.tokenizer.apply_chat_template(talk(row, "chosen"), tokenize=False) for row in ROWS
    ]

    found = score(address, texts, "/v1/score/evaluation")

    assert found["object"] == "score.evaluation"
    ids = [engine.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    with torch.no_grad():
        alone = [float(engine.model(torch.tensor([one])).logits) for one in ids]
    assert found["scores"] == pytest.approx(alone, abs=1e-5)
    assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
    cut = score(address, texts, max_length=5)
    with torch.no_grad():
        expected = [float(engine.model(torch.tensor([one[:5]])).logits) for one in ids]
    assert cut["scores"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("messages", "fields", "said"),
    [
        ([], {}, "messages"),
        ([""], {}, "no token"),
        ([{"role": "user", "content": "x"}], {}, "assistant's"),
        ([[{"role": "user", "content": "x"}]], {}, "assistant's"),
        (["sing " * 3000], {}, r"[\d,]+ tokens, and the model reads 512"),
        (talk({"instruction": "x", "a": "y " * 3000}, "a"), {}, "the model reads 512"),
        (["x"], {"max_length": 0}, "max_length"),
        (talk(ROWS[0], "chosen"), {"max_length": 9}, "max_length"),
        (["x"], {"temperature": 1}, "temperature"),
        (["x", [1]], {}, "messages"),
    ],
)
def test_what_cannot_be_scored_is_refused(address, messages, fields, said: str) -> None:
    asked = {"model": "rewards", "messages": messages} | fields

    status, _, text = ask(address, "/v1/score", asked)

    assert status == 400
    assert re.search(said, error_of(text)["message"])


def test_a_reward_model_writes_nothing(address: str) -> None:
    for route, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
    ):
        status, _, text = ask(address, route, body | {"model": "rewards"})

        assert (status, error_of(text)["code"]) == (400, "wrong_kind_of_model")
    assert ask(address, "/health")[0] == 200


def test_a_model_that_writes_scores_nothing(models: list[Served]) -> None:
    engine = make_engine()
    with serving(engine, Served("tiny", engine), *models) as address:
        wrong = ask(address, "/v1/score", {"model": "tiny", "messages": ["x"]})
        right = ask(address, "/v1/score", {"model": "rewards", "messages": ["x"]})

    assert (wrong[0], error_of(wrong[2])["code"]) == (400, "wrong_kind_of_model")
    assert right[0] == 200


def test_a_folder_without_a_record_says_itself_that_it_scores(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    (bare / RUN_RECORD).unlink()

    arguments = arguments_of(bare)

    assert arguments.finetuning.stage == "rm"
    assert load_models([arguments], [bare])[0].engine.scores


def test_it_is_served_alone(run: Path) -> None:
    with pytest.raises(ArgumentsError, match="alone"):
        load_models([arguments_of(run)] * 2, [run, run.parent])


def test_a_score_that_is_no_number_is_told_on_health(models: list[Served], address: str) -> None:
    weight = models[0].engine.model.score.weight
    before = float(weight[0, 0])
    with torch.no_grad():
        weight[0, 0] = torch.nan
    try:
        wrong = ask(address, "/v1/score", {"model": "rewards", "messages": ["x"]})
        health = ask(address, "/health")[0]
    finally:
        with torch.no_grad():
            weight[0, 0] = before

    assert (wrong[0], health) == (500, 503)
    assert "finite" in error_of(wrong[2])["message"]
    assert score(address, ["x"])["scores"]
    assert ask(address, "/health")[0] == 200


def test_sequences_go_together_as_far_as_their_tokens_allow() -> None:
    lengths = [10, MOST_TOKENS, 30, MOST_TOKENS // 2, MOST_TOKENS // 2 - 5, 7]

    batches = _batches(lengths)

    assert sorted(at for batch in batches for at in batch) == [0, 1, 2, 3, 4, 5]
    assert batches == [[1], [3, 4], [2, 0, 5]]
