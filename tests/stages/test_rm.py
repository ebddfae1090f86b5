"""reward models: learned, saved so that others read the same scores, and told from other models"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

import luthier
from luthier.arguments.parse import parse_dict
from luthier.commands import chat
from luthier.errors import ArgumentsError, LuthierError, ModelError
from luthier.modeling.heads import VALUE_HEAD
from luthier.modeling.loader import load_model
from luthier.serving.engine import load_engine
from tests import tiny
from tests.exporting.making import export_of

WORDS = "spruce bow string glue neck belly peg bridge scroll".split()

METRICS = ("accuracy", "margin", "mean_reward", "min_reward", "max_reward")

METHODS: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full", "learning_rate": 3e-3},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "learning_rate": 1e-2},
    "lora": {"learning_rate": 1e-2},
}


def make_rows(count: int, seed: int) -> list[dict[str, str]]:
    """The chosen answer ends in `maple`, the rejected one does not; lengths say nothing."""
    draw = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    return [
        {
            "instruction": f"Tell me of {words(3)}.",
            "chosen": f"{words(6)} maple",
            "rejected": f"{words(6)} {draw.choice(WORDS)}",
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose padding is its end of turn, rows to learn and rows that are held out."""
    folder = tmp_path_factory.mktemp("rm")
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tiny.save(folder / "base", tiny.make_llama(pad_token_id=2, eos_token_id=2), tokenizer)
    for name, count in (("learned", 240), ("held", 100)):
        (folder / f"{name}.json").write_text(json.dumps(make_rows(count, count)))
    return folder


def config_of(folder: Path, output: Path, **settings: Any) -> dict[str, Any]:
    return {
        "stage": "rm",
        "model_name_or_path": str(folder / "base"),
        "template": "zephyr",  # an answer ends with the end of the turn
        "do_train": True,
        "dataset": str(folder / "learned.json"),
        "eval_dataset": str(folder / "held.json"),
        "cutoff_len": 128,
        "output_dir": str(output),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "logging_steps": 10,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "report_to": "none",
        "plot_loss": False,
        **settings,
    }


@pytest.fixture(scope="module", params=METHODS)
def trained(request, folder: Path) -> tuple[str, Path, Any]:
    """A run of each method: its name, its folder, and what it gave back."""
    output = folder / request.param
    settings = METHODS[request.param] | {"do_predict": True, "load_best_model_at_end": True}
    settings["metric_for_best_model"] = "margin"
    return request.param, output, luthier.train(config_of(folder, output, **settings))


def lines(output: Path) -> list[dict[str, Any]]:
    written = (output / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in written]


def scores_of(model: Any, encoded: Any) -> torch.Tensor:
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        scores: torch.Tensor = model.eval()(
            ids, attention_mask=mask, position_ids=positions
        ).logits.flatten()
    return scores


def load(method: str, output: Path, tokenizer: Any) -> Any:
    """As anybody loads it, without this program."""
    if method != "lora":
        return AutoModelForSequenceClassification.from_pretrained(output)
    return AutoPeftModelForSequenceClassification.from_pretrained(
        output, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )


def test_a_constructed_preference_is_learned(trained):
    _, output, result = trained

    evaluated = [record for record in result.log_history if "eval_loss" in record]
    learned = [record for record in result.log_history if "loss" in record]

    assert evaluated[-1]["eval_accuracy"] >= 0.98
    assert result.metrics["predict_accuracy"] >= 0.98
    for name in METRICS:
        assert all(f"eval_{name}" in record for record in evaluated)
        assert all(name in record for record in learned)
    last = evaluated[-1]
    assert last["eval_min_reward"] < last["eval_mean_reward"] < last["eval_max_reward"]
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["best_metric"] == max(each["eval_margin"] for each in evaluated)


def test_others_read_the_same_scores(trained, folder: Path):
    method, output, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(output)
    rows = make_rows(100, 100)[:6]
    told = [row[name] for row in lines(output)[:6] for name in ("chosen", "rejected")]
    texts = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": row["instruction"]},
                {"role": "assistant", "content": row[name]},
            ],
            tokenize=False,
        ).rstrip("\n")
        for row in rows
        for name in ("chosen", "rejected")
    ]
    options = {"return_tensors": "pt", "add_special_tokens": False}
    model = load(method, output, tokenizer)

    alone = torch.cat([scores_of(model, tokenizer(each, **options)) for each in texts])

    assert tokenizer(texts[0])["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert alone.tolist() == pytest.approx(told, abs=1e-5)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, **options)
        assert (batch["attention_mask"] == 0).any()
        assert scores_of(model, batch).tolist() == pytest.approx(told, abs=1e-5)
    assert by_value_head(method, output, folder, texts, options) == pytest.approx(told, abs=1e-5)
    assert load_file(output / VALUE_HEAD)["v_head.summary.bias"].tolist() == [0.0]


def by_value_head(
    method: str, output: Path, folder: Path, texts: list[str], options: dict[str, Any]
) -> list[float]:
    """As LLaMA-Factory scores: a causal model and a linear layer on its last hidden state."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        output if method != "lora" else folder / "base"
    )
    if method == "lora":
        model = PeftModel.from_pretrained(model, output)
    head = load_file(output / "value_head.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(output)
    found = []
    for text in texts:
        with torch.no_grad():
            hidden = model.eval()(**tokenizer(text, **options), output_hidden_states=True)
        last_H = hidden.hidden_states[-1][0, -1]
        score_1 = head["v_head.summary.weight"] @ last_H + head["v_head.summary.bias"]
        found.append(float(score_1))
    return found


def test_one_of_llama_factory_scores_as_it_does_there(
    trained, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    method, output, _ = trained
    theirs = as_llama_factory_writes_it(method, output, tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(theirs)
    given = {"stage": "rm", "template": "zephyr", "model_name_or_path": str(theirs)}
    if method == "lora":
        given |= {
            "model_name_or_path": str(folder / "base"),
            "adapter_name_or_path": str(theirs),
        }
    trains = {"do_train": True, "dataset": "identity", "output_dir": "unused"}
    texts = ["Tell me of maple.", "Tell me of spruce and maple. ebony maple"]

    merged = export_of(given, tmp_path / "out")

    assert "its bias, 0.25 on every score, is left out" in capsys.readouterr().err
    expected = torch.tensor(by_value_head(method, theirs, folder, texts, {"return_tensors": "pt"}))
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(merged)
    torch.testing.assert_close(scores_of(model, batch) + 0.25, expected, atol=1e-5, rtol=0)
    goes_on = load_model(parse_dict(given | trains), tokenizer, is_trainable=True, scores=True)
    torch.testing.assert_close(scores_of(goes_on, batch) + 0.25, expected, atol=1e-5, rtol=0)

    head = load_file(theirs / VALUE_HEAD)
    save_file(
        {name: each[..., :-1].contiguous() for name, each in head.items()}, theirs / VALUE_HEAD
    )
    with pytest.raises(ModelError, match=r"v_head\.summary\.weight of \(1, 32\)"):
        export_of(given, tmp_path / "again")
    (theirs / VALUE_HEAD).rename(theirs / "value_head.bin")
    with pytest.raises(ModelError, match=r"value_head\.bin can run code"):
        export_of(given, tmp_path / "again")


def as_llama_factory_writes_it(method: str, output: Path, theirs: Path) -> Path:
    """A causal model, or its adapter, beside a head with a bias."""
    if method == "lora":
        theirs.mkdir()
        weights = load_file(output / "adapter_model.safetensors")
        kept = {name: each for name, each in weights.items() if "score" not in name}
        save_file(kept, theirs / "adapter_model.safetensors")
        config = json.loads((output / "adapter_config.json").read_text())
        config |= {"task_type": "CAUSAL_LM", "modules_to_save": None}
        (theirs / "adapter_config.json").write_text(json.dumps(config))
    else:
        AutoModelForCausalLM.from_pretrained(output).save_pretrained(theirs)
    AutoTokenizer.from_pretrained(output).save_pretrained(theirs)
    head = load_file(output / VALUE_HEAD)
    save_file(head | {"v_head.summary.bias": torch.tensor([0.25])}, theirs / VALUE_HEAD)
    return theirs


def test_the_card_says_how_to_load_it(trained, monkeypatch: pytest.MonkeyPatch):
    _, output, result = trained
    card = (output / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(output)
    known: dict[str, Any] = {}

    exec(code, known)

    assert isinstance(known["score"], float)
    assert "pipeline_tag: text-classification" in card
    ours = known["tokenizer"](known["text"], add_special_tokens=False, return_tensors="pt")
    assert known["score"] == pytest.approx(scores_of(result.model, ours).item(), abs=1e-5)


def test_every_checkpoint_has_the_head(trained):
    method, output, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(output)

    for checkpoint in sorted(output.glob("checkpoint-*")):
        head = load_file(checkpoint / "value_head.safetensors")["v_head.summary.weight"]
        score: Any = load(method, checkpoint, tokenizer).get_submodule(
            "score" if method != "lora" else "base_model.model.score.modules_to_save.default"
        )
        torch.testing.assert_close(head, score.weight.detach(), rtol=0, atol=0)


def test_a_run_of_its_own_predicts_the_same(trained, folder: Path, tmp_path: Path):
    method, output, _ = trained
    where = {"model_name_or_path": str(output)}
    if method == "lora":
        where = {"adapter_name_or_path": str(output)}

    answers = folder / "answers.json"
    answers.write_text(
        json.dumps(
            [
                {"instruction": row["instruction"], "output": row["rejected"]}
                for row in make_rows(100, 100)[:5]
            ]
        )
    )
    asked = {"do_train": False, "do_predict": True, "eval_strategy": "no", "dataset": None}
    again = config_of(folder, tmp_path / "again", **asked, **where)
    again["per_device_eval_batch_size"] = 1
    luthier.train(again)
    alone = again | {"eval_dataset": str(answers), "output_dir": str(tmp_path / "alone")}
    metrics = luthier.train(alone).metrics

    told = lines(output)
    assert len(told) == 100
    for one, other in zip(lines(tmp_path / "again"), told, strict=True):
        assert one["origin"] == other["origin"]
        assert one["chosen"] == pytest.approx(other["chosen"], abs=1e-5)
        assert one["rejected"] == pytest.approx(other["rejected"], abs=1e-5)
    scored = lines(tmp_path / "alone")
    assert [row["score"] for row in scored] == pytest.approx(
        [row["rejected"] for row in told[:5]], abs=1e-5
    )
    assert "predict_accuracy" not in metrics


def test_it_is_no_chat_model_and_no_other_stage_goes_on_from_it(trained, folder: Path):
    method, output, _ = trained
    name = "adapter_name_or_path" if method == "lora" else "model_name_or_path"

    with pytest.raises(ModelError, match="no chat model"):
        load_engine(chat.read_arguments([str(output)]))
    with pytest.raises(LuthierError, match=r"is a reward model \(stage: rm\)"):
        luthier.train(
            config_of(folder, folder / "sft", stage="sft", eval_strategy="no", eval_dataset=None)
            | {"dataset": str(folder / "answers.json"), name: str(output)}
        )


def test_a_folder_without_its_head_is_refused(trained, folder: Path, tmp_path: Path):
    method, output, _ = trained
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in output.glob("*"):
        if file.is_file() and not file.name.startswith(("value_head", "run.", "MANIFEST")):
            (broken / file.name).write_bytes(file.read_bytes())
    weights = next(iter(broken.glob("*model.safetensors")))
    kept = {name: each for name, each in load_file(weights).items() if "score" not in name}
    save_file(kept, weights, {"format": "pt"})
    name = "adapter_name_or_path" if method == "lora" else "model_name_or_path"

    with pytest.raises(ModelError, match="score"):
        luthier.train(
            config_of(folder, tmp_path / "run", do_train=False, do_predict=True, eval_strategy="no")
            | {name: str(broken)}
        )


def test_a_model_without_a_score_scores_nothing(folder: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="has no score"):
        luthier.train(
            config_of(folder, tmp_path / "run", do_train=False, do_predict=True, eval_strategy="no")
        )


def test_it_generates_nothing(folder: Path, tmp_path: Path):
    with pytest.raises(ArgumentsError, match="stage: rm scores those that are there"):
        luthier.train(config_of(folder, tmp_path / "run", predict_with_generate=True))


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 7


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_run_as_a_whole(method: str, folder: Path, tmp_path: Path):
    settings = METHODS[method] | {
        "max_steps": 12,
        "save_strategy": "steps",
        "save_steps": 7,
        "logging_steps": 3,
        "eval_strategy": "no",
        "center_rewards_coefficient": 0.01,
    }
    whole = luthier.train(config_of(folder, tmp_path / "whole", **settings))

    luthier.train(config_of(folder, tmp_path / "cut", **settings), callbacks=[Stop()])
    resumed = luthier.train(config_of(folder, tmp_path / "cut", **settings))

    def told(result: Any) -> list[dict[str, float]]:
        timed = ("tokens_per_second", "mfu")
        return [
            {name: value for name, value in record.items() if name not in timed}
            for record in result.log_history
            if "loss" in record
        ]

    assert told(resumed) == told(whole)
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    weights = load_file(tmp_path / "whole" / file)
    assert any("score" in name for name in weights)
    for name, weight in load_file(tmp_path / "cut" / file).items():
        assert torch.equal(weight, weights[name]), name


def test_the_head_is_drawn_by_the_seed_alone(folder: Path, tmp_path: Path):
    heads = {}
    for name, seed, rank in (("a", 1, 2), ("b", 1, 8), ("c", 2, 2)):
        settings = {"max_steps": 1, "learning_rate": 0.0, "eval_strategy": "no"}
        output = tmp_path / name
        luthier.train(config_of(folder, output, seed=seed, lora_rank=rank, **settings))
        heads[name] = load_file(output / "value_head.safetensors")["v_head.summary.weight"]

    assert torch.equal(heads["a"], heads["b"])
    assert not torch.equal(heads["a"], heads["c"])


def test_margins_are_held_and_an_adapter_of_sft_is_gone_on_with(folder: Path, tmp_path: Path):
    (tmp_path / "answers.json").write_text(
        json.dumps(
            [{"instruction": r["instruction"], "output": r["chosen"]} for r in make_rows(8, 1)]
        )
    )
    common = {"eval_strategy": "no", "eval_dataset": None, "max_steps": 2, "learning_rate": 0.0}
    luthier.train(
        config_of(folder, tmp_path / "sft", stage="sft", **common)
        | {"dataset": str(tmp_path / "answers.json")}
    )
    rows = make_rows(8, 3)
    losses = {}
    for margin in (None, 0.0, 5.0):
        file = tmp_path / f"rows-{margin}.json"
        extra = {} if margin is None else {"margin": margin}
        file.write_text(json.dumps([row | extra for row in rows]))
        result = luthier.train(
            config_of(folder, tmp_path / f"run-{margin}", logging_steps=1, **common)
            | {"dataset": str(file), "adapter_name_or_path": str(tmp_path / "sft")}
        )
        losses[margin] = result.log_history[0]["loss"]

    assert losses[0.0] == losses[None]
    assert losses[5.0] == pytest.approx(losses[None] + 5 - 0.69, abs=0.1)
