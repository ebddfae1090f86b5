"""whole runs of stage pt on a tiny model"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import luthier
from luthier.batching.steps import StepBuilder
from luthier.data.pipeline import load_datasets
from luthier.errors import ArgumentsError
from luthier.modeling.attention.interface import install_tree_attention
from luthier.modeling.reads import read_logps
from luthier.stages.stage import STAGES
from tests import tiny
from tests.data.test_texts import write_lines

TEXTS = tuple(
    f"Chapter {n}. The luthier carves {n % 5} necks from maple and warms the glue {n} times. " * 2
    for n in range(24)
)


@pytest.fixture
def config(llama_folder: Path, tmp_path: Path) -> dict[str, object]:
    return {
        "model_name_or_path": str(llama_folder),
        "stage": "pt",
        "finetuning_type": "full",
        "dataset": str(write_lines(tmp_path, TEXTS)),
        "cutoff_len": 64,
        "do_train": True,
        "output_dir": str(tmp_path / "run"),
        "cache_dir": str(tmp_path / "cache"),
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


def losses(result: luthier.training.run.RunResult) -> list[float]:
    return [record["loss"] for record in result.log_history if "loss" in record]


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_document_in_a_block_has_the_loss_it_has_alone(layout, tmp_path: Path):
    arguments = luthier.arguments.parse.parse_dict(
        {
            "model_name_or_path": "unused",
            "stage": "pt",
            "do_train": True,
            "dataset": str(write_lines(tmp_path, TEXTS[:8])),
            "cutoff_len": 400,
            "output_dir": str(tmp_path / "run"),
            "cache_dir": str(tmp_path / "cache"),
        }
    )
    data = load_datasets(arguments, tiny.make_stage(arguments, tiny.make_tokenizer())).train
    train = data.table
    model = tiny.make_llama().eval()
    alone = [
        model(input_ids=ids[None], labels=ids[None]).loss.item()
        for row in train
        for ids in torch.tensor(row["input_ids"]).split(row["packed"])
    ]
    if layout == "tree":
        install_tree_attention(model)

    builder = StepBuilder(data, 0, 10**6, layout=layout)
    (batch,) = builder(range(len(train))).micro_batches
    logps = read_logps(model, batch).logps_N.detach()

    inside = [-logps[batch.sequences == number].mean().item() for number in range(len(alone))]
    assert len(alone) >= 8 > len(train)
    assert sorted(inside) == pytest.approx(sorted(alone), abs=1e-6)
    assert STAGES.get("pt")(arguments).loss(model, batch).total.item() == pytest.approx(
        -logps.sum().item(), rel=1e-6
    )


@pytest.mark.parametrize("method", ["full", "lora", "freeze"])
@pytest.mark.parametrize("neat_packing", [True, False])
def test_texts_are_learned(method, neat_packing, config):
    config |= {"finetuning_type": method, "neat_packing": neat_packing, "max_steps": 8}

    result = luthier.train(config)

    assert losses(result)[-1] < losses(result)[0] - 0.1


def test_an_evaluation_gives_the_perplexity(config):
    result = luthier.train(config | {"val_size": 4, "do_eval": True})

    loss, perplexity = result.metrics["eval_loss"], result.metrics["eval_perplexity"]
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(config, tmp_path: Path):
    config |= {"save_strategy": "steps", "save_steps": 3}
    straight = luthier.train(config)
    left = tmp_path / "left"
    left.mkdir()
    shutil.copytree(straight.output_dir / "checkpoint-3", left / "checkpoint-3")

    resumed = luthier.train(config | {"output_dir": str(left)})

    assert losses(resumed) == losses(straight)
    weights = [load_file(one.output_dir / "model.safetensors") for one in (straight, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_changes_nothing_of_the_tokenizer_but_pad(config, llama_folder: Path):
    result = luthier.train(config | {"max_steps": 1})

    before, after = (
        tiny.PreTrainedTokenizerFast.from_pretrained(folder)
        for folder in (llama_folder, result.output_dir)
    )
    assert after.chat_template == before.chat_template
    assert after.get_vocab() == before.get_vocab()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_history": True}, "mask_history is about questions and answers"),
        ({"on_overlong": "drop"}, "stage: pt goes on with a long text in the next example"),
        ({"document_overlap": 40}, "expected at most 32"),
        ({"stage": "sft", "document_overlap": 4}, "on_overlong: split"),
        ({"stage": "sft", "sample_by": "document"}, "conversations are rows"),
    ],
)
def test_what_says_nothing_about_texts_is_refused(settings, message, config):
    with pytest.raises(ArgumentsError, match=message):
        luthier.train(config | settings)


def test_weights_at_random_fit_the_tokenizer(config, tmp_path: Path, capsys):
    folder = tmp_path / "plan"
    AutoConfig.from_pretrained(config["model_name_or_path"]).save_pretrained(folder)
    tiny.make_tokenizer(vocab_size=700).save_pretrained(folder)
    small = {"model_name_or_path": str(folder), "train_from_scratch": True, "max_steps": 1}

    result = luthier.train(config | small)

    model = AutoModelForCausalLM.from_pretrained(result.output_dir)
    size = len(tiny.make_tokenizer(vocab_size=700))
    assert size > 400
    assert model.config.vocab_size == -(-size // 64) * 64
    said = " ".join(capsys.readouterr().err.split())
    assert f"vocab_size = {model.config.vocab_size}" in said
