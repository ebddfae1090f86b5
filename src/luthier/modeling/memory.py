"""What training takes of a device's memory when all activations are kept."""

# T tokens, L tokens of the longest sequence

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from luthier.arguments.choices import Optimizer
from luthier.modeling.counts import count_layers
from luthier.modeling.dtypes import Autocast
from luthier.modeling.sharded import gathering, has_shards, held_part

PROBE_LENGTHS = (8, 16, 24)
"""Tokens of the three probes that say how activations grow."""

HEAD_BYTES = 384 * 2**20
"""Room for a chunk of logits with their copies, and for the hidden states that the head reads."""

FLOAT32_BYTES = torch.float32.itemsize


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps of a forward pass: `fixed + T * (each + L * pair)`.

    Attributes:
        fixed: whatever the length, such as weights that autocast has rounded.
        each: of every token.
        pair: of every token for each token of its sequence, as attention scores and masks are.
    """

    fixed: float
    each: float
    pair: float

    def of(self, num_tokens: int, longest: int) -> int:
        """Bytes of a micro-batch.

        Args:
            num_tokens: of the whole micro-batch.
            longest: tokens of its longest sequence.
        """
        return int(self.fixed + num_tokens * (self.each + longest * self.pair))


def measure_activations(model: Any, autocast: Autocast, *, is_padded: bool) -> Activations:
    """Probes a model with three short sequences and counts what autograd keeps.

    That is the model as it is: its architecture, adapters, replaced layers, attention and dtypes.
    The head is left out, since the loss never sees all logits. Weights do not count. No random
    number is drawn from the run's generators.

    Args:
        model: ready to train, on its device, without gradient checkpointing.
        autocast: makes the context that the run computes in.
        is_padded: whether the sequences are padded, which takes another way through attention.
    """
    body = _body(model)
    device = next(body.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with gathering(body), torch.random.fork_rng(devices):
        first, second, third = (
            _saved_bytes(body, _probe(length, device, is_padded=is_padded), autocast)
            for length in PROBE_LENGTHS
        )
    step = PROBE_LENGTHS[1] - PROBE_LENGTHS[0]
    pair = max(third - 2 * second + first, 0) / (2 * step**2)
    each = (second - first) / step - pair * (PROBE_LENGTHS[0] + PROBE_LENGTHS[1])
    fixed = first - PROBE_LENGTHS[0] * (each + PROBE_LENGTHS[0] * pair)
    return Activations(max(fixed, 0.0), max(each, 0.0), pair)


def training_bytes(
    model: Any,
    activations: Activations,
    num_tokens: int,
    longest: int,
    optimizer: Optimizer,
    *,
    keeps_float32: bool = False,
) -> int:
    """What training adds to a model that is already in memory.

    Gradients and optimizer states of what learns, the activations of a micro-batch, one layer of
    them once more for the gradients that pass through it, and a chunk of the head.

    Args:
        model: ready to train.
        activations: from `measure_activations`.
        num_tokens: of the largest micro-batch.
        longest: tokens of the longest sequence.
        optimizer: what its name stands for.
        keeps_float32: whether it works on float32 copies of weights in half precision, as
            DeepSpeed's does; that ranks share its states is left out, so this is the most needed.
    """
    total = 0.0
    for parameter in model.parameters():
        if parameter.requires_grad:
            held = held_part(parameter)
            total += held.nbytes
            if keeps_float32 and held.element_size() < FLOAT32_BYTES:
                held = torch.empty(held.numel(), dtype=torch.float32, device="meta")
                total += held.nbytes
            total += optimizer.state_bytes(held)
    kept = activations.of(num_tokens, longest)
    layers = count_layers(extract_model_from_parallel(model).config) or 1
    return int(total + kept * (1 + 1 / layers) + HEAD_BYTES)


def _body(model: Any) -> nn.Module:
    bare = extract_model_from_parallel(model)
    base = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
    body: nn.Module = base.base_model
    return body


def _probe(length: int, device: torch.device, *, is_padded: bool) -> dict[str, Tensor]:
    ids_1T = torch.ones(1, length, dtype=torch.int64, device=device)
    mask_1T = torch.ones_like(ids_1T)
    mask_1T[0, length - is_padded :] = 0
    return {"input_ids": ids_1T, "attention_mask": mask_1T}


def _saved_bytes(body: nn.Module, probe: dict[str, Tensor], autocast: Autocast) -> int:
    with (
        _weights(body) as weights,
        _counting(weights) as storages,
        autocast(),
        torch.enable_grad(),
    ):
        hidden = body(**probe, use_cache=False)
        del hidden
        return sum(storages.values())


@contextmanager
def _weights(body: nn.Module) -> Iterator[set[int]]:
    """The addresses of weights; of those that are held in parts, while their module computes."""
    known = {_address(tensor) for tensor in (*body.parameters(), *body.buffers())}
    gathered: dict[nn.Module, set[int]] = {}

    def enter(module: nn.Module, *_: Any) -> None:
        gathered[module] = {_address(each) for each in module.parameters(recurse=False)} - known
        known.update(gathered[module])

    def leave(module: nn.Module, *_: Any) -> None:
        known.difference_update(gathered.pop(module))

    hooks: list[Any] = []
    if has_shards(body):
        for module in body.modules():
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield known
    finally:
        for hook in hooks:
            hook.remove()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _counting(weights: set[int]) -> Iterator[dict[int, int]]:
    """The storages that autograd keeps, address -> bytes; they live on until the end."""
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
