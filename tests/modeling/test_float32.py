"""a model in half precision computes in float32 for a while, and is itself again afterwards"""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch.nn.functional import cross_entropy

from luthier.modeling import selfcheck
from luthier.modeling.selfcheck import float32_bytes, in_float32
from tests import tiny

IDS = torch.tensor([[5, 9, 17, 4, 8, 23, 11, 6]])


def in_bfloat16(**options):
    model = tiny.make_llama(vocab_size=97, tie_word_embeddings=True, **options)
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def learning(model):
    return [each for each in model.parameters() if each.requires_grad]


def loss_and_gradients(model, leaves):
    loss = cross_entropy(model(input_ids=IDS, use_cache=False).logits[0, :-1], IDS[0, 1:])
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("held", [2**30, 0], ids=["held", "while they compute"])
def test_a_model_computes_what_its_float32_copy_does(held, monkeypatch):
    monkeypatch.setattr(selfcheck, "HELD", held)
    model = in_bfloat16()
    wide = copy.deepcopy(model).float()
    before = list(model.named_parameters())
    weights = learning(model)

    with in_float32(model, weights, room=None) as stand_ins:
        found = loss_and_gradients(model, [stand_ins[id(each)] for each in weights])

    expected = loss_and_gradients(wide, learning(wide))
    assert all(map(torch.equal, found, expected))
    assert [(name, id(each)) for name, each in model.named_parameters()] == [
        (name, id(each)) for name, each in before
    ]
    assert all(each.dtype is torch.bfloat16 and each.grad is None for _, each in before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_it_takes_at_least_is_one_layer_and_what_stands_beside_them():
    model = tiny.make_llama(vocab_size=97, num_hidden_layers=8).to(torch.bfloat16)
    layer = sum(each.numel() for each in model.model.layers[0].parameters())
    every = sum(each.numel() for each in (*model.parameters(), *model.buffers()))

    assert float32_bytes(model) == 4 * (every - 7 * layer)
    assert float32_bytes(model.float()) == 0


def test_weights_in_float32_are_the_leaves_themselves():
    model = in_bfloat16()
    for each in learning(model):
        each.data = each.data.float()

    with in_float32(model, learning(model), room=None) as stand_ins:
        assert stand_ins == {}
        assert {each.dtype for each in model.parameters()} == {torch.float32}
