"""recomputed activations give the same gradients, and only where something learns"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from tests import tiny
from tests.modeling.adapters.test_lora import load

IDS = torch.tensor([[5, 17, 300, 9, 4]])


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.make_llama(num_hidden_layers=4)
    return tiny.save(tmp_path_factory.mktemp("deep"), model)


def gradients(model) -> dict[str, torch.Tensor]:
    model.train()
    model(IDS, labels=IDS).loss.backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def switched(model) -> list[bool]:
    return [
        layer.gradient_checkpointing
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
    ]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"finetuning_type": "full"}, [True] * 4),
        ({"finetuning_type": "lora", "lora_rank": 2}, [True] * 4),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 1}, [False] * 3 + [True]),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": -1}, [True] * 4),
        (
            {
                "finetuning_type": "freeze",
                "freeze_trainable_layers": 1,
                "freeze_extra_modules": "embed_tokens",
            },
            [True] * 4,
        ),
    ],
)
def test_gradients_are_those_without_it(
    deep_folder: Path, values: dict[str, object], expected: list[bool], use_reentrant: bool
):
    torch.manual_seed(0)
    plain = load(deep_folder, disable_gradient_checkpointing=True, **values)
    torch.manual_seed(0)
    model = load(deep_folder, use_reentrant_gc=use_reentrant, **values)

    assert switched(model) == expected
    assert not any(switched(plain))
    wanted, found = gradients(plain), gradients(model)
    assert found.keys() == wanted.keys()
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.parametrize(
    "values", [{"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False}]
)
def test_either_word_switches_it_off(deep_folder: Path, values: dict[str, object]):
    assert not any(switched(load(deep_folder, **values)))
