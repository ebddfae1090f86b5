"""which modules LoRA goes to"""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from luthier.errors import ModelError
from luthier.modeling.adapters.targets import (
    Targets,
    check_saved_modules,
    choose_targets,
    linear_names,
    saved_modules,
)
from tests import tiny

LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_all_means_every_linear_module_but_the_head():
    assert linear_names(tiny.make_llama()) == LLAMA
    assert linear_names(tiny.make_gpt2()) == ["c_attn", "c_fc", "c_proj"]


def test_all_wins_over_names():
    assert choose_targets(tiny.make_llama(), ("q_proj", "all")) == Targets(tuple(LLAMA))


@pytest.mark.parametrize(
    "asked", [("q_proj",), ("mlp.up_proj", "v_proj"), ("embed_tokens",), ("lm_head",)]
)
def test_names_are_taken_as_given(asked: tuple[str, ...]):
    assert choose_targets(tiny.make_llama(), asked) == Targets(asked)


@pytest.mark.parametrize("name", ["q_prj", "proj", "self_attn", "norm", "c_attn"])
def test_what_cannot_be_adapted_lists_what_can(name: str):
    with pytest.raises(ModelError, match=f"'{name}'") as error:
        choose_targets(tiny.make_llama(), ("v_proj", name))

    assert f"Choose from: all, {', '.join(sorted([*LLAMA, 'embed_tokens', 'lm_head']))}" in str(
        error.value
    )


def test_an_unknown_module_to_save_lists_those_outside_the_layers():
    check_saved_modules(tiny.make_llama(), ("lm_head", "norm", "embed_tokens"))

    with pytest.raises(ModelError, match="embed_tokens, lm_head, norm"):
        check_saved_modules(tiny.make_llama(), ("head",))


def test_names_of_modules_to_save_are_endings_and_told_as_what_they_mean():
    told = saved_modules(tiny.make_llama(), ("norm", "lm_head"))

    assert told == "input_layernorm (2 times), post_attention_layernorm (2 times), norm, lm_head"


EXPERTS = {"mlp.experts.gate_up_proj": 2, "mlp.experts.down_proj": 1}
"""The weights of all experts -> how many layers are one in each."""


def make_mixtral() -> MixtralForCausalLM:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(vocab_size=400, **tiny.GROUPED_QUERIES, **experts))


@pytest.mark.parametrize("make", [tiny.make_qwen3_moe, make_mixtral])
@pytest.mark.parametrize(
    ("asked", "modules", "parameters"),
    [
        ("all", ("k_proj", "o_proj", "q_proj", "v_proj"), {**EXPERTS, "mlp.gate.weight": 1}),
        ("v_proj,gate_proj,up_proj,down_proj", ("v_proj",), EXPERTS),
        ("experts.gate_up_proj", (), {"mlp.experts.gate_up_proj": 2}),
        ("gate", (), {"mlp.gate.weight": 1}),
    ],
)
def test_experts_are_reached(make: Any, asked: str, modules: Any, parameters: Any):
    assert choose_targets(make(), asked.split(",")) == Targets(modules, parameters)


def test_experts_go_by_the_names_of_their_own_kind_of_model():
    assert choose_targets(make_mixtral(), ("w1", "w2", "w3")) == Targets((), EXPERTS)


def test_layers_that_are_called_as_experts_are_adapted_beside_them():
    model = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=400,
            **tiny.GROUPED_QUERIES,
            num_experts=4,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=24,
            mlp_only_layers=[0],
        )
    )

    chosen = choose_targets(model, ("down_proj",))

    assert set(chosen.parameters) == {
        "mlp.experts.down_proj",
        "mlp.shared_expert.down_proj.weight",
        "mlp.down_proj.weight",
    }


def test_one_of_the_layers_of_one_weight_is_not_adapted_alone():
    with pytest.raises(ModelError, match=r"several layers in one, .* Name up_proj, too"):
        choose_targets(tiny.make_qwen3_moe(), ("q_proj", "gate_proj"))


@pytest.mark.parametrize("name", ["lora_dropout", "use_dora", "pissa_init"])
def test_experts_that_cannot_be_adapted_are_left_out_and_told(name: str, capsys: Any):
    chosen = choose_targets(tiny.make_qwen3_moe(), ("all",), cannot_hold=name)

    assert chosen == Targets(("k_proj", "o_proj", "q_proj", "v_proj"))
    said = " ".join(capsys.readouterr().err.split())
    assert "all leaves out mlp.experts.down_proj, mlp.experts.gate_up_proj" in said
    assert f"cannot be adapted with {name}" in said
    with pytest.raises(ModelError, match=f"mlp.experts.down_proj cannot be adapted with {name}"):
        choose_targets(tiny.make_qwen3_moe(), ("down_proj",), cannot_hold=name)


def test_experts_that_never_were_linear_layers_are_left_out_and_told(capsys: Any):
    experts = {"head_dim": 8, "num_local_experts": 4}
    model = GptOssForCausalLM(GptOssConfig(vocab_size=400, **tiny.GROUPED_QUERIES, **experts))

    assert not choose_targets(model, ("all",)).parameters
    assert "all leaves out mlp.experts.down_proj" in " ".join(capsys.readouterr().err.split())
    assert choose_targets(model, ("down_proj",)).parameters == {"mlp.experts.down_proj": 1}
