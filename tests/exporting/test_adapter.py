"""an adapter for vLLM: what it would refuse or ignore is refused, the rest is the adapter"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.arguments.parse import parse_dict
from luthier.checkpoints.verify import verify
from luthier.errors import ArgumentsError, ModelError
from luthier.exporting.adapter import RANKS, problems_of, serve_line
from tests.exporting.making import arguments_for, export_of, logits, make_run

REFUSED_BY_VLLM = {
    "modules_to_save": ["embed_tokens"],
    "use_dora": True,
    "bias": "all",
}
"""What PEFTHelper.validate_legal refuses, beside a rank above `--max-lora-rank`."""

READ_BY_VLLM = {
    "r",
    "lora_alpha",
    "target_modules",
    "bias",
    "modules_to_save",
    "use_rslora",
    "use_dora",
}
"""The fields of PEFTHelper; others of an adapter_config.json are left out in silence."""

WITHOUT_EFFECT = {
    "base_model_name_or_path",
    "revision",
    "peft_type",
    "task_type",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "lora_dropout",
    "fan_in_fan_out",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "runtime_config",
    "arrow_config",
    "qalora_group_size",
    "ensure_weight_tying",
    "init_lora_weights",
}
"""Of these, what vLLM needs not know: how it was trained, and what the names of weights say."""


def config(**values: Any) -> dict[str, Any]:
    return LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict() | values


def validate_legal(said: dict[str, Any], max_lora_rank: int) -> bool:
    """vLLM's rules."""
    return not (
        said["r"] > max_lora_rank
        or said["bias"] != "none"
        or said["modules_to_save"]
        or said["use_dora"]
    )


@pytest.mark.parametrize("name", REFUSED_BY_VLLM)
def test_what_vllm_refuses_is_refused(name: str):
    said = config(**{name: REFUSED_BY_VLLM[name]})

    assert not validate_legal(said, 512)
    (problem,) = problems_of(said)
    assert name in problem


@pytest.mark.parametrize(
    "values",
    [
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"target_parameters": ["mlp.experts.down_proj"]},
        {"init_lora_weights": "pissa_niter_16"},
        {"target_modules": ["model.embed_tokens", "q_proj"]},
        {"task_type": "SEQ_CLS"},
        {"peft_type": "OFT"},
        {"r": 1024},
        {"lora_bias": True},
    ],
)
def test_what_vllm_would_leave_out_in_silence_is_refused(values: dict[str, Any]):
    assert len([*problems_of(config(**values))]) == 1


def test_a_plain_adapter_is_legal_with_the_rank_that_is_printed():
    for rank in (1, 8, 16, 17, 33, 200, 512):
        said = config(r=rank, use_rslora=True)
        words = serve_line(rank, "mine", "owner/base")

        printed = words.partition("--max-lora-rank ")[2].partition(" ")[0]
        assert not [*problems_of(said)]
        assert validate_legal(said, int(printed or 16))
        assert not printed or int(printed) in RANKS


@pytest.mark.parametrize(
    "values", [{}, {"use_rslora": True, "lora_rank": 20}, {"pissa_init": True}]
)
def test_the_folder_is_the_adapter(
    tmp_path: Path, llama_folder: Path, values: dict[str, Any], capsys
):
    run = make_run(tmp_path / "run", llama_folder, **values)

    folder = export_of(run, tmp_path / "mine", adapter=True)

    def told(place: Path) -> torch.Tensor:
        base = AutoModelForCausalLM.from_pretrained(llama_folder)
        return logits(PeftModel.from_pretrained(base, place))

    assert torch.equal(told(folder), told(run))
    said = json.loads((folder / "adapter_config.json").read_text())
    assert validate_legal(said, 32)
    assert all(".lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(run)
    assert ours.chat_template == theirs.chat_template
    assert (folder / "chat_template.jinja").is_file()
    assert not (folder / "model.safetensors").exists()
    card, spoken = (folder / "README.md").read_text(), capsys.readouterr().err
    for text in (card, spoken):
        assert "--lora-modules mine=mine" in text
        assert ("--max-lora-rank 32" in text) == (said["r"] > 16)
    assert "library_name: peft" in card
    assert not verify(folder)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"use_dora": True}, "it is DoRA"),
        ({"additional_target": "embed_tokens"}, "modules_to_save: embed_tokens"),
        ({"stage": "rm", "dataset": "preferences"}, "reward model"),
    ],
)
def test_a_run_that_vllm_cannot_load_says_which_and_what_else(
    tmp_path: Path, llama_folder: Path, values: dict[str, Any], why: str
):
    run = make_run(tmp_path / "run", llama_folder, **values)

    with pytest.raises(ModelError, match=why) as caught:
        export_of(run, tmp_path / "mine", adapter=True)

    assert "the merged model needs nothing of vLLM" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_two_adapters_or_none_are_refused(tmp_path: Path, llama_folder: Path):
    given = {"model_name_or_path": str(llama_folder), "template": "chatml"}

    with pytest.raises(ModelError, match="0 adapters are named"):
        export_of(given, tmp_path / "mine", adapter=True)


def test_it_stands_alone(tmp_path: Path):
    with pytest.raises(ArgumentsError, match="export twice"):
        parse_dict(
            {"model_name_or_path": "x", "export_dir": "y", "adapter": True, "gguf": "f16"},
            purpose="export",
        )
    given = {"model_name_or_path": "x"}
    with pytest.raises(ArgumentsError, match="as it was trained"):
        arguments_for(given, tmp_path, adapter=True, export_dtype="float16")


def test_every_setting_of_peft_was_thought_of():
    from luthier.exporting.adapter import IGNORED

    named = READ_BY_VLLM | WITHOUT_EFFECT | {*IGNORED, "lora_bias"}

    unknown = {name for name, value in config().items() if name not in named and value}
    assert not unknown, "does vLLM read it, and does it change what the adapter computes?"
