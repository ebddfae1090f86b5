"""weights that are whole are left alone by what handles weights in parts"""

import torch

from luthier.arguments.choices import OPTIMIZERS
from luthier.modeling.memory import Activations, training_bytes
from luthier.modeling.sharded import full_numel, full_shape, gathering, has_shards, held_part, whole
from tests.tiny import make_qwen2

ADAMW = OPTIMIZERS.get("adamw_torch")
NOTHING = Activations(0.0, 0.0, 0.0)


def test_whole_weights_are_what_they_are():
    model = make_qwen2()
    weight = model.lm_head.weight

    assert not has_shards(model)
    assert (full_numel(weight), full_shape(weight)) == (weight.numel(), weight.shape)
    assert held_part(weight) is weight
    with gathering(model), whole([weight], changes=True) as (same,):
        assert same is weight
    assert not any(vars(module).get("pre_bwd_fn") for module in model.modules())


def test_float32_copies_of_half_precision_are_counted():
    model = make_qwen2()
    count = sum(each.numel() for each in model.parameters())
    wide = training_bytes(model, NOTHING, 0, 0, ADAMW, keeps_float32=True)
    model.to(torch.bfloat16)

    half = training_bytes(model, NOTHING, 0, 0, ADAMW, keeps_float32=True)
    without = training_bytes(model, NOTHING, 0, 0, ADAMW)

    assert half - wide == (2 + 4 - 4) * count  # gradients in half, and a copy
    assert half - without == (4 + 8 - 4) * count
