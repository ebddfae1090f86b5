"""the estimate of activations is what autograd keeps; what optimizers keep goes by their name"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch

from luthier.arguments.choices import OPTIMIZERS
from luthier.modeling.memory import measure_activations, training_bytes
from tests import tiny


def with_lora(model: Any) -> Any:
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def frozen_but_last(model: Any) -> Any:
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    return model


def half_autocast() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


MODELS: dict[str, Callable[[], Any]] = {
    "full": lambda: tiny.make_llama(num_hidden_layers=4),
    "lora": lambda: with_lora(tiny.make_qwen2(num_hidden_layers=4)),
    "freeze": lambda: frozen_but_last(tiny.make_llama(num_hidden_layers=4)),
    "conv1d": lambda: tiny.make_gpt2(),
    "plain attention": lambda: tiny.make_llama(attn_implementation="eager"),
}


def kept_bytes(
    model: Any, rows: int, length: int, autocast: Callable[[], Any], *, is_padded: bool
) -> int:
    """What autograd keeps of a forward pass up to the head, weights apart."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    ids = torch.randint(3, 400, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, length - is_padded :] = 0
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast():
        base.base_model(ids, attention_mask=mask, use_cache=False)
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        if address not in weights
    )


@pytest.mark.parametrize("is_padded", [True, False], ids=["padded", "whole"])
@pytest.mark.parametrize("autocast", [contextlib.nullcontext, half_autocast])
@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_what_is_kept_and_a_little_more(name, autocast, is_padded):
    model = MODELS[name]()
    model.train()

    activations = measure_activations(model, autocast, is_padded=is_padded)

    for rows, length in ((1, 160), (4, 50)):
        kept = kept_bytes(model, rows, length, autocast, is_padded=is_padded)
        estimate = activations.of(rows * length, length)
        needed = training_bytes(
            model, activations, rows * length, length, OPTIMIZERS.get("adamw_torch")
        )
        # tensors may be rounded up to whole cache lines, and rows share what depends on positions
        assert 0.98 * kept <= estimate <= 1.3 * kept
        assert needed > kept + sum(
            3 * each.nbytes for each in model.parameters() if each.requires_grad
        )


def test_a_probe_draws_nothing_from_the_generator_and_leaves_no_gradient():
    model = tiny.make_gpt2(resid_pdrop=0.1)
    model.train()
    before = torch.get_rng_state()

    measure_activations(model, contextlib.nullcontext, is_padded=True)

    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("optim", "each"),
    [
        ("adamw_torch", 8),
        ("adamw_torch_fused", 8),
        ("adafactor", 0),
        ("sgd", 4),
        ("adagrad", 4),
        ("ademamix", 12),
        ("lion_32bit", 4),
        ("paged_lion_32bit", 4),
        ("rmsprop_bnb_8bit", 1),
        ("paged_adamw_8bit", 2),
    ],
)
def test_what_an_optimizer_keeps_of_a_number(optim, each):
    assert OPTIMIZERS.get(optim).state_bytes(torch.zeros(10, 3)) == 30 * each
