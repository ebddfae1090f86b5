"""which modules LoRA goes to"""

from __future__ import annotations

import pytest

from luthier.errors import ModelError
from luthier.modeling.adapters.targets import check_saved_modules, choose_targets, linear_names
from tests import tiny

LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_all_means_every_linear_module_but_the_head():
    assert linear_names(tiny.make_llama()) == LLAMA
    assert linear_names(tiny.make_gpt2()) == ["c_attn", "c_fc", "c_proj"]


def test_all_wins_over_names():
    assert choose_targets(tiny.make_llama(), ("q_proj", "all")) == LLAMA


@pytest.mark.parametrize(
    "asked", [("q_proj",), ("mlp.up_proj", "v_proj"), ("embed_tokens",), ("lm_head",)]
)
def test_names_are_taken_as_given(asked: tuple[str, ...]):
    assert choose_targets(tiny.make_llama(), asked) == list(asked)


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
