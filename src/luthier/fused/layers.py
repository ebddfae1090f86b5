"""Forwards that stand before a layer's own, and hand over to it where they do not apply."""

# B rows, A attention heads, T tokens, D dimensions of a head
# N rows (tokens), H hidden, I intermediate

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from luthier.fused.lora import Projection, autocast_dtype, lora_linear
from luthier.fused.mlp import Activation, gate, gated_mlp
from luthier.fused.norm import NormFormula, rms_norm


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation x cos + rotate_half(x) sin (Su et al. 2021, equation 34, by halves).

    `x` is (..., D), the first half of D paired with the second; `cos` and `sin` are broadcastable
    to it, without gradient. The result has its order in memory and the widest of the three dtypes.
    """
    y: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * cos
        x = x.to(y.dtype)
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        half = gy.shape[-1] // 2
        gx = gy * cos.to(gy.dtype)
        gx[..., :half].addcmul_(gy[..., half:], sin[..., half:])
        gx[..., half:].addcmul_(gy[..., :half], sin[..., :half], value=-1)
        return gx, None, None


class FusedForward:
    """The `forward` of one module, as an attribute of it; a copy of the module gets its own.

    torch.compile fuses by itself: it is shown the layer's own forward.
    """

    kind = "layers"  # the layer in words, for the log

    def __init__(self, module: Any) -> None:
        self.module = module

    def own(self, *inputs: Any, **options: Any) -> Any:
        """What the module computes by itself."""
        return type(self.module).forward(self.module, *inputs, **options)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if len(inputs) == 1 and not options and not torch.compiler.is_compiling():
            y = self.fused(inputs[0])
            if y is not None:
                return y
        return self.own(*inputs, **options)

    def fused(self, x: Tensor) -> Tensor | None:
        """The same in fewer passes; None where that does not apply."""
        raise NotImplementedError


class FusedProjection(FusedForward):
    """A linear layer, with or without a low-rank update, in a group that reads one input."""

    kind = "linear layers"

    def __init__(self, module: nn.Module, group: ProjectionGroup) -> None:
        super().__init__(module)
        self.group = group

    def fused(self, x: Tensor) -> Tensor | None:
        return self.group.project(self.module, x)


class ProjectionGroup:
    """Linear layers of one input, as query, key and value: the first one asked computes all.

    They stand in the order in which the model calls them. Where it turns out not to give the others
    the same tensor (the same object, unchanged), each is computed alone from then on.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = tuple(modules)
        self.x: Tensor | None = None
        self.version = -1
        self.waiting: dict[nn.Module, Tensor] = {}  # outputs that were not asked for yet

    def __getstate__(self) -> dict[str, Any]:
        return {"modules": self.modules, "x": None, "version": -1, "waiting": {}}

    def project(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """The output of one of them; None where its own forward has to make it."""
        if x is self.x and x._version == self.version and module in self.waiting:
            y = self.waiting.pop(module)
            if not self.waiting:
                self.x = None
            return y
        if self.waiting:
            self.x, self.waiting, self.modules = None, {}, ()
        asked = self.modules if self.modules and module is self.modules[0] else (module,)
        projections = [read_projection(each, x) for each in asked]
        if projections[0] is None:
            return None
        known = [each for each in projections if each is not None]
        if len(known) < len(asked):
            asked, known = (module,), known[:1]
        y, *others = lora_linear(x, known)
        if others:
            self.x, self.version = x, x._version
            self.waiting = dict(zip(asked[1:], others, strict=True))
        return y


class FusedMlp(FusedForward):
    """A feed-forward layer down(act(gate(x)) * up(x)) with these names."""

    kind = "feed-forward layers"

    def __init__(self, module: nn.Module, activation: Activation) -> None:
        super().__init__(module)
        self.activation = activation

    def fused(self, x: Tensor) -> Tensor | None:
        layers = (self.module.gate_proj, self.module.up_proj, self.module.down_proj)
        readable = [read_projection(layer, x) for layer in layers if is_untouched(layer)]
        projections = [each for each in readable if each is not None]
        if len(projections) == len(layers):
            of_gate, of_up, of_down = projections
            return gated_mlp(x, of_gate, of_up, of_down, self.activation)
        gate_proj, up_proj, down_proj = layers
        y: Tensor = down_proj(gate(gate_proj(x), up_proj(x), self.activation))
        return y


class FusedPackedMlp(FusedMlp):
    """The same with gate and up in one matrix, as in Phi-3 and GLM-4."""

    def fused(self, x: Tensor) -> Tensor | None:
        gate_I, up_I = self.module.gate_up_proj(x).chunk(2, dim=-1)
        y: Tensor = self.module.down_proj(gate(gate_I, up_I, self.activation))
        return y


class FusedNorm(FusedForward):
    """An RMSNorm."""

    kind = "norms"

    def __init__(self, module: nn.Module, formula: NormFormula) -> None:
        super().__init__(module)
        self.formula = formula

    def fused(self, x: Tensor) -> Tensor | None:
        if not is_plain(self.module.weight):
            return None
        return rms_norm(x, self.module.weight, self.formula)


class FusedRotary(FusedForward):
    """An attention layer's own forward with another `apply_rotary_pos_emb` in its sight."""

    kind = "rotary embeddings"

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__(module)
        self.forward = forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.own(*inputs, **options)
        return self.forward(self.module, *inputs, **options)


def rotary_before(own: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """An `apply_rotary_pos_emb` of fewer passes before a model's own, for rotations by halves."""

    def apply_rotary_pos_emb(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        if cos.requires_grad or not q.shape[-1] == k.shape[-1] == cos.shape[-1]:
            return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    return apply_rotary_pos_emb


def read_projection(module: Any, x: Tensor) -> Projection | None:
    """What a linear layer computes of its input `x`, if that is what `Projection` says.

    peft's layers are plain with one active adapter that is neither merged nor disabled nor of a
    variant (DoRA and others), without dropout.
    """
    is_adapted = type(module) is LoraLinear
    base = module.base_layer if is_adapted else module
    if is_plain_linear(base):
        projection = Projection(base.weight, base.bias)
    elif is_adapted and type(base) is Conv1D and is_untouched(base) and is_plain(base.weight):
        projection = Projection(base.weight.t(), base.bias)
    else:
        return None
    weight = projection.weight
    if weight.device != x.device or (autocast_dtype(x) is None and x.dtype != weight.dtype):
        return None
    if not is_adapted:
        return projection
    names = module.active_adapters
    if module.disable_adapters or module.merged or len(names) != 1:
        return None
    name = names[0]
    if name not in module.lora_A or name in module.lora_variant:
        return None
    a, b, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    is_silent = type(dropout) is nn.Identity or (type(dropout) is nn.Dropout and dropout.p == 0)
    if not (is_silent and is_plain_linear(a) and is_plain_linear(b) and b.bias is None):
        return None
    if a.weight.dtype != b.weight.dtype or a.weight.device != weight.device:
        return None
    if not getattr(module, "cast_input_dtype_enabled", True):
        return None
    return projection._replace(a=a.weight, b=b.weight, scaling=module.scaling[name])


def is_plain_linear(module: Any) -> bool:
    """Whether a module is torch's own linear layer, whole on its device, and nobody listens."""
    return type(module) is nn.Linear and is_untouched(module) and is_plain(module.weight)


def is_plain(weight: Any) -> bool:
    """Whether a weight is an ordinary tensor: not sharded, quantised or left for later."""
    return type(weight) in (nn.Parameter, Tensor) and not weight.is_meta and weight.numel() > 0


def is_untouched(module: nn.Module) -> bool:
    """Whether calling a module does what its class says, and nobody listens."""
    forward = vars(module).get("forward")
    has_hooks = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    return not has_hooks and (forward is None or isinstance(forward, FusedForward))
