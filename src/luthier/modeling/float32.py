"""A model that computes in float32 for a while, with the numbers that its weights have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.modeling.sharded import full_numel, is_sharded, whole

HALVES = frozenset({torch.bfloat16, torch.float16})

HELD = 2**30
"""Bytes of layers in float32 that are held until the end, where memory has room for them."""

StandIns: TypeAlias = dict[int, nn.Parameter]
"""The identity of a weight -> the float32 leaf in its place."""


@contextmanager
def in_float32(
    model: nn.Module, leaves: Iterable[nn.Parameter], room: int | None
) -> Iterator[StandIns]:
    """While open, every weight in half precision has a copy in float32 in its place.

    The first layers that fit are held so. A further layer is only while it computes, and again in
    the backward pass, as with gradient checkpointing, so the model may be of any size. Weights of
    packed types stay; those that are held in parts become whole, and every rank has to do the same.

    Args:
        model: without gradient checkpointing.
        leaves: weights whose gradients will be asked for.
        room: bytes that may be taken, the same on every rank; None where nobody knows.

    Yields:
        What stands in for those of `leaves` that are in half precision or held in parts.
    """
    rest, layers = _parts(model)
    stand_ins = {id(each): _copy(each, learns=True) for each in leaves if _is_replaced(each)}
    left = HELD if room is None else min(HELD, room - float32_bytes(model))
    with ExitStack() as stack, _exact_products():
        stack.enter_context(_swapped(rest, stand_ins))
        for layer in layers:
            left -= _bytes(layer.modules())
            enter = _swapped(list(layer.modules()), stand_ins) if left >= 0 else None
            stack.enter_context(enter or _streamed(layer, stand_ins))
        yield stand_ins


def float32_bytes(model: nn.Module) -> int:
    """What `in_float32` takes at least: all that stands beside the layers, and one of them."""
    rest, layers = _parts(model)
    return _bytes(rest) + max((_bytes(layer.modules()) for layer in layers), default=0)


def _parts(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    layers = list(_layers(model))
    inside = {module for layer in layers for module in layer.modules()}
    return [module for module in model.modules() if module not in inside], layers


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)


def _places(modules: Iterable[nn.Module]) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Where tensors stand that are in half precision, or held in parts."""
    tables: list[dict[str, Any]] = []
    for module in modules:
        tables += module._parameters, module._buffers
    return [
        (table, name, tensor)
        for table in tables
        for name, tensor in table.items()
        if type(tensor) in (nn.Parameter, Tensor) and _is_replaced(tensor)
    ]


def _is_replaced(tensor: Tensor) -> bool:
    return tensor.dtype in HALVES or (is_sharded(tensor) and tensor.is_floating_point())


def _bytes(modules: Iterable[nn.Module]) -> int:
    tensors = {id(tensor): tensor for *_, tensor in _places(modules)}
    return torch.float32.itemsize * sum(map(full_numel, tensors.values()))


def _copy(tensor: Any, *, learns: bool = False) -> Any:
    with whole([tensor]):
        wide = tensor.detach().to(torch.float32, copy=True)
    return nn.Parameter(wide, learns) if isinstance(tensor, nn.Parameter) else wide


@contextmanager
def _swapped(modules: Sequence[nn.Module], stand_ins: StandIns) -> Iterator[None]:
    places, copies = _places(modules), dict(stand_ins)
    try:
        for table, name, tensor in places:
            if id(tensor) not in copies:
                copies[id(tensor)] = _copy(tensor)
            table[name] = copies[id(tensor)]
        yield
    finally:
        for table, name, tensor in places:
            table[name] = tensor


@contextmanager
def _streamed(layer: nn.Module, stand_ins: StandIns) -> Iterator[None]:
    own, before = layer.forward, vars(layer).get("forward")

    def compute(*inputs: Any, **options: Any) -> Any:
        with _swapped(list(layer.modules()), stand_ins):
            return own(*inputs, **options)

    def forward(*inputs: Any, **options: Any) -> Any:
        return checkpoint(partial(compute, **options), *inputs, use_reentrant=False)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


@contextmanager
def _exact_products() -> Iterator[None]:
    """No TensorFloat-32, which rounds as float16 does."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
