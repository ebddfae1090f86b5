"""freeze finds the modules of a model and marks exactly those that were asked for"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import ModelError
from luthier.modeling.adapters.freeze import choose_layers, find_modules, prepare
from tests import tiny
from tests.modeling.making import make_arguments

LLAMA = (
    ["input_layernorm", "mlp", "post_attention_layernorm", "self_attn"],
    ["embed_tokens", "lm_head", "norm"],
)
GPT2 = (["attn", "ln_1", "ln_2", "mlp"], ["ln_f", "wpe", "wte"])


def learning(model, **values: object) -> set[str]:
    prepared = prepare(model, make_arguments(**values), is_trainable=True)
    return {name for name, parameter in prepared.named_parameters() if parameter.requires_grad}


def of_layers(model, *layers: int, module: str = "") -> set[str]:
    return {
        name
        for name, _ in model.named_parameters()
        if any(f".{layer}.{module}" in name for layer in layers)
    }


@pytest.mark.parametrize(
    ("model", "expected"), [(tiny.make_llama(), LLAMA), (tiny.make_gpt2(), GPT2)]
)
def test_modules_are_discovered_from_parameter_names(model, expected):
    assert find_modules(name for name, _ in model.named_parameters()) == expected


@given(st.integers(1, 100), st.integers(-120, 120))
def test_layers_come_from_one_end(num_layers: int, count: int):
    layers = list(choose_layers(num_layers, count))

    assert len(layers) == min(abs(count), num_layers)
    if layers:
        assert layers[0 if count < 0 else -1] == (0 if count < 0 else num_layers - 1)
        assert layers == list(range(layers[0], layers[-1] + 1))


@pytest.mark.parametrize("make", [tiny.make_llama, tiny.make_gpt2])
@pytest.mark.parametrize(("count", "layers"), [(1, {1}), (-1, {0}), (2, {0, 1}), (9, {0, 1})])
def test_only_the_chosen_layers_learn(make, count: int, layers: set[int]):
    model = make()

    assert learning(model, freeze_trainable_layers=count) == of_layers(model, *layers)


def test_layer_2_is_not_layer_12():
    model = tiny.make_llama(num_hidden_layers=13)

    found = learning(model, freeze_trainable_layers=-3)

    assert found == of_layers(model, 0, 1, 2)
    assert not any(".12." in name for name in found)


def test_named_modules_learn_and_extra_ones_with_them():
    model = tiny.make_llama()

    found = learning(
        model,
        freeze_trainable_layers=1,
        freeze_trainable_modules="self_attn,input_layernorm",
        freeze_extra_modules="norm,lm_head",
    )

    assert found == of_layers(model, 1, module="self_attn") | of_layers(
        model, 1, module="input_layernorm"
    ) | {"model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize("make", [tiny.make_llama, tiny.make_gpt2])
def test_an_unknown_module_lists_the_sorted_choices(make):
    model = make()
    inside, outside = find_modules(name for name, _ in model.named_parameters())

    with pytest.raises(ModelError, match="'self_atn'") as hidden:
        learning(model, freeze_trainable_modules="mlp,self_atn")
    with pytest.raises(ModelError, match="'mlp'") as extra:
        learning(model, freeze_extra_modules="mlp")

    assert f"Choose from: all, {', '.join(inside)}." in str(hidden.value)
    assert f"Choose from: {', '.join(outside)}." in str(extra.value)


def test_a_model_without_a_layer_count_is_refused():
    model = tiny.make_llama()
    model.config = type(model.config)()
    model.config.num_hidden_layers = 0

    with pytest.raises(ModelError, match="num_hidden_layers, num_layers, n_layer"):
        learning(model)


def test_a_head_that_is_the_embeddings_is_named_by_them():
    with pytest.raises(ModelError, match=r"that of embed_tokens \(tied\). Name embed_tokens"):
        learning(tiny.make_llama(tie_word_embeddings=True), freeze_extra_modules="lm_head")
