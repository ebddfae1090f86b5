"""every learning parameter is in one group, with the rate of its kind"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model

from luthier.training.optimizers.make import loraplus_groups
from tests import tiny


def make_groups(target: list[str]):
    config = LoraConfig(r=2, target_modules=target, modules_to_save=["norm"])
    model = get_peft_model(tiny.make_llama(), config)
    decay = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    groups = loraplus_groups(model, 1e-4, 0.1, 16.0, 1e-6, decay)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return model, [
        ({names[id(parameter)] for parameter in group["params"]}, group) for group in groups
    ]


def test_each_learning_parameter_is_in_one_group():
    model, groups = make_groups(["q_proj", "embed_tokens"])

    grouped = [name for names, _ in groups for name in names]

    assert sorted(grouped) == sorted(
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    )


def test_each_kind_has_its_rate():
    _, groups = make_groups(["q_proj", "embed_tokens"])

    for names, group in groups:
        for name in names:
            if "lora_embedding_B" in name:
                assert (group["lr"], group["weight_decay"]) == (1e-6, 0.1)
            elif "lora_B" in name:
                assert (group["lr"], group["weight_decay"]) == (16e-4, 0.1)
            elif "norm" in name:
                assert (group["lr"], group["weight_decay"]) == (16e-4, 0.0)
            else:
                assert (group["lr"], group["weight_decay"]) == (1e-4, 0.1)


def test_groups_without_parameters_are_left_out():
    _, groups = make_groups(["q_proj"])

    assert len(groups) == 3
    torch.optim.AdamW([group for _, group in groups])
