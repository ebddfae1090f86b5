"""rotations of what layers read: made, refused, trained on, merged, read by plain peft"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import luthier
from luthier.arguments.parse import parse_dict
from luthier.errors import ModelError
from tests import tiny
from tests.modeling.adapters.test_lora import IDS, learning, load, logits, shake
from tests.stages.made import short_run

OFT = {"finetuning_type": "oft", "oft_block_size": 8}


@pytest.mark.parametrize("values", [{}, {"oft_block_size": 0, "oft_rank": 4}])
def test_a_new_adapter_changes_nothing_and_learns(llama_folder: Path, values: dict[str, object]):
    before = logits(AutoModelForCausalLM.from_pretrained(llama_folder))

    model = load(llama_folder, **OFT | values)

    torch.testing.assert_close(logits(model), before)
    assert all("oft_R" in name for name in learning(model))
    model.train()
    model(IDS, labels=IDS).loss.backward()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)


def test_plain_peft_reads_what_was_saved(llama_folder: Path, tmp_path: Path):
    model = load(llama_folder, **OFT, oft_target="q_proj,down_proj", additional_target="norm")
    shake(model)
    model.save_pretrained(tmp_path)

    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), tmp_path)

    torch.testing.assert_close(logits(again), logits(model))
    config = PeftConfig.from_pretrained(tmp_path)
    assert (config.target_modules, config.oft_block_size) == ({"q_proj", "down_proj"}, 8)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"oft_block_size": 7}, r"oft_block_size 7 does not divide what .*_proj reads, .*: 2, 4, "),
        ({"oft_block_size": 0, "oft_rank": 5}, "oft_rank 5 does not divide"),
        ({"oft_target": "q_prj"}, "oft_target: this model has no module 'q_prj'.*q_proj"),
        ({"oft_target": "embed_tokens"}, "embed_tokens is Embedding, and OFT"),
        (
            {"oft_target": "q_proj", "additional_target": "q_proj"},
            "oft_target: nothing is left that OFT adapts",
        ),
    ],
)
def test_what_does_not_fit_is_a_sentence(llama_folder: Path, values: dict[str, object], said: str):
    with pytest.raises(ModelError, match=said):
        load(llama_folder, **OFT | values)


def test_models_that_peft_cannot_rotate_are_told(gpt2_folder: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="is Conv1D, and OFT adapts only linear layers"):
        load(gpt2_folder, **OFT)
    tied = tiny.save(tmp_path, tiny.make_llama(tie_word_embeddings=True))
    with pytest.raises(ModelError, match="embeddings that are the head as well"):
        load(tied, **OFT, add_tokens="<a>", resize_vocab=True)


def test_where_blocks_are_counted_their_size_is_not(llama_folder: Path, tmp_path: Path):
    config = short_run(llama_folder, tmp_path, "sft", tmp_path, finetuning_type="oft", oft_rank=4)
    assert parse_dict(config).finetuning.oft_block_size == 0


def test_a_run_that_goes_on_is_the_same_run(llama_folder: Path, tmp_path: Path):
    rows = tmp_path / "rows.json"
    answers = ["a luthier", "of course", "what else", "nobody"]
    rows.write_text(json.dumps([{"instruction": "who", "output": each} for each in answers * 4]))
    config = short_run(
        llama_folder,
        tmp_path,
        "sft",
        rows,
        **OFT,
        module_dropout=0.3,
        save_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
    ) | {"save_strategy": "steps", "max_steps": 4}
    luthier.train(config | {"output_dir": str(tmp_path / "whole")})
    luthier.train(config | {"max_steps": 2, "output_dir": str(tmp_path / "cut")})
    luthier.train(config | {"output_dir": str(tmp_path / "cut"), "overwrite_output_dir": False})

    whole, cut = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut")
    )
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
