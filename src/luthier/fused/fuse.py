"""Layers of a loaded model get faster forwards, in place; what it computes and saves stays."""

# H hidden

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from luthier.fused.layers import (
    FusedForward,
    FusedMlp,
    FusedNorm,
    FusedPackedMlp,
    FusedProjection,
    FusedRotary,
    ProjectionGroup,
    is_plain,
    read_projection,
    rotary_before,
)
from luthier.fused.mlp import ACTIVATIONS
from luthier.fused.norm import NormFormula

GROUPS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)
"""Names of linear layers that read the same input, in the order in which models call them."""

CLOSE = 1e-5
"""Largest relative difference of two ways to the same float32 number, on a few numbers."""


@dataclass(frozen=True)
class Fused:
    """What was replaced."""

    counts: Mapping[str, int]  # kind of layer -> how many
    num_left: int  # peft's linear layers that keep their own forward

    def __str__(self) -> str:
        said = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items()) or "nothing"
        left = f"; {self.num_left:,} LoRA layers keep peft's forward" if self.num_left else ""
        return f"fused: {said}{left}"


def fuse(model: nn.Module) -> Fused:
    """Gives layers forwards that do the same in fewer passes and keep less for the backward pass.

    Which layers, is found by what they compute on a few random numbers, not by their names:

    - peft's linear layers: product and low-rank update in one, q, k and v with one gradient of
      their input,
    - feed-forward layers down(act(gate(x)) * up(x)): the product inside is made again, not kept,
    - RMSNorms: made again from their input where only fused layers read them,
    - rotary embeddings by halves.

    Every forward looks at each call whether it applies (adapters disabled, merged or switched,
    hooks, weights that are sharded or of another dtype) and is the layer's own otherwise.
    Parameters, state dict and modules are left alone. For a model with its adapters, before it is
    wrapped for several devices.
    """
    unfuse(model)
    for module in list(model.modules()):
        forward = _fused_mlp(module) or _fused_norm(module) or _fused_rotary(module)
        if forward is not None:
            module.forward = forward
        for names in GROUPS:
            group = [each for name in names if (each := module._modules.get(name)) is not None]
            kinds = {type(each) for each in group}
            if LoraLinear in kinds <= {LoraLinear, nn.Linear} and len(group) == len(names):
                if all(map(_is_readable, group)):
                    shared = ProjectionGroup(group)
                    for each in group:
                        each.forward = FusedProjection(each, shared)
    num_left = 0
    for module in model.modules():
        if type(module) is LoraLinear and _installed(module) is None:
            if _is_readable(module):
                module.forward = FusedProjection(module, ProjectionGroup((module,)))
            else:
                num_left += 1
    kinds_found = (fused.kind for module in model.modules() if (fused := _installed(module)))
    return Fused(dict(Counter(kinds_found)), num_left)


def unfuse(model: nn.Module) -> None:
    """Gives all layers their own forward back."""
    for module in model.modules():
        if _installed(module) is not None:
            del module.forward


def _installed(module: nn.Module) -> FusedForward | None:
    forward = vars(module).get("forward")
    return forward if isinstance(forward, FusedForward) else None


def _is_readable(module: Any) -> bool:
    if "forward" in vars(module):
        return False
    layer = module.base_layer if isinstance(module, LoraLinear) else module
    weight = layer._parameters.get("weight")
    return weight is not None and read_projection(module, weight) is not None


def _fused_mlp(module: nn.Module) -> FusedMlp | None:
    names = set(module._modules)
    for kind, inside, act in (
        (FusedMlp, {"gate_proj": (4, 6), "up_proj": (4, 6), "down_proj": (6, 4)}, "act_fn"),
        (FusedPackedMlp, {"gate_up_proj": (4, 12), "down_proj": (6, 4)}, "activation_fn"),
    ):
        if names == {*inside, act} and "forward" not in vars(module):
            x = _random(64) * 4
            with torch.no_grad():
                y = getattr(module, act)(x)
                same = (each for each in ACTIVATIONS.values() if _is_close(y, each.apply(x)))
                activation = next(same, None)
            if activation is None:
                return None
            probe = copy.copy(module)
            stand_ins = {name: _random_linear(*sizes) for name, sizes in inside.items()}
            probe._modules = {**stand_ins, act: module._modules[act]}
            x = _random(3, 4)
            if _agree(kind(probe, activation), x):
                return kind(module, activation)
    return None


def _fused_norm(module: nn.Module) -> FusedNorm | None:
    weight = module._parameters.get("weight")
    eps = vars(module).get("variance_epsilon", vars(module).get("eps"))
    if weight is None or len(module._parameters) > 1 or module._modules:
        return None
    if not isinstance(eps, float) or weight.dim() != 1 or not is_plain(weight):
        return None
    if "forward" in vars(module):
        return None
    probe = copy.copy(module)
    probe._parameters = {
        "weight": nn.Parameter(_random(len(weight)).to(weight), requires_grad=False)
    }
    x = _random(3, len(weight)).to(weight.device)
    for formula in (
        NormFormula(eps),
        NormFormula(eps, casts_first=False),
        NormFormula(eps, shift=1.0, casts_first=False),
        NormFormula(eps, shift=1.0),
    ):
        fused = FusedNorm(probe, formula)
        if _agree(fused, x) and _agree(fused, x.to(torch.bfloat16)):
            return FusedNorm(module, formula)
    return None


def _fused_rotary(module: nn.Module) -> FusedRotary | None:
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or "forward" in vars(module):
        return None
    name = "apply_rotary_pos_emb"
    own = forward.__globals__.get(name)
    if name not in forward.__code__.co_names or not inspect.isfunction(own):
        return None
    if list(inspect.signature(own).parameters) != ["q", "k", "cos", "sin", "unsqueeze_dim"]:
        return None
    fused = rotary_before(own)
    q, k, cos, sin = _random(1, 2, 3, 8), _random(1, 1, 3, 8), _random(1, 3, 8), _random(1, 3, 8)
    try:
        plain = own(q, k, cos, sin)
    except RuntimeError:  # of half as many angles, as in gpt-oss
        return None
    if not all(_is_close(*pair) for pair in zip(fused(q, k, cos, sin), plain, strict=True)):
        return None
    seen = {**forward.__globals__, name: fused}
    other = FunctionType(
        forward.__code__, seen, forward.__name__, forward.__defaults__, forward.__closure__
    )
    other.__kwdefaults__ = forward.__kwdefaults__
    return FusedRotary(module, other)


def _agree(fused: FusedForward, x: Tensor) -> bool:
    with torch.no_grad():
        try:
            own = fused.own(x)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False
        other = fused.fused(x)
        return isinstance(own, Tensor) and other is not None and _is_close(own, other)


def _is_close(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    close = CLOSE if left.dtype is torch.float32 else 2 * torch.finfo(left.dtype).eps
    return torch.allclose(left.float(), right.float(), rtol=close, atol=close)


def _random_linear(num_in: int, num_out: int) -> nn.Linear:
    layer = nn.Linear(num_in, num_out, bias=False, device="meta")
    layer.weight = nn.Parameter(_random(num_out, num_in), requires_grad=False)
    return layer


def _random(*shape: int) -> Tensor:
    """Random numbers that leave torch's own generator where it is."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
