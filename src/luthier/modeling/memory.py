"""What training takes of a device's memory, and gradient checkpointing where it is too much."""

# T tokens, L tokens of the longest sequence

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier import console
from luthier.arguments.choices import OPTIMIZERS, Optimizer
from luthier.arguments.record import Arguments
from luthier.modeling.counts import count_layers
from luthier.modeling.device import free_memory
from luthier.modeling.dtypes import Autocast
from luthier.modeling.quirks import enable_checkpointing
from luthier.modeling.sharded import gathering, has_shards, held_part

PROBE_LENGTHS = (8, 16, 24)
"""Tokens of the three probes that say how activations grow."""

HEAD_BYTES = 384 * 2**20
"""Room for a chunk of logits with their copies, and for the hidden states that the head reads."""

USABLE = {"cpu": 0.5, "cuda": 0.85}
"""The share of the free memory that an estimate may fill.

glibc's heap has been seen to grow to twice what is kept in it, torch's own of a GPU hardly at all.
"""


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps of a forward pass: `fixed + T * (each + L * pair)`."""

    fixed: float  # whatever the length, such as weights that autocast has rounded
    each: float  # of every token
    pair: float  # of every token for each token of its sequence, as attention scores and masks are

    def of(self, num_tokens: int, longest: int) -> int:
        """Bytes of a micro-batch of so many tokens, those of its longest sequence given."""
        return int(self.fixed + num_tokens * (self.each + longest * self.pair))


def measure_activations(model: Any, autocast: Autocast, *, is_padded: bool) -> Activations:
    """Probes a model with three short sequences and counts what autograd keeps.

    That is the model as it is: its architecture, adapters, replaced layers, attention and dtypes,
    without gradient checkpointing. The head is left out, since the loss never sees all logits.
    Weights do not count. No random number is drawn from the run's generators. Padded sequences take
    another way through attention.
    """
    bare = extract_model_from_parallel(model)
    base = bare.get_base_model() if isinstance(bare, PeftModel) else bare
    body: nn.Module = base.base_model
    device = next(body.parameters()).device
    devices = [device] if device.type == "cuda" else []
    counts: list[int] = []
    with gathering(body), torch.random.fork_rng(devices):
        for length in PROBE_LENGTHS:
            ids_1T = torch.ones(1, length, dtype=torch.int64, device=device)
            mask_1T = torch.ones_like(ids_1T)
            mask_1T[0, length - is_padded :] = 0
            with _counting(body) as storages, autocast(), torch.enable_grad():
                hidden = body(input_ids=ids_1T, attention_mask=mask_1T, use_cache=False)
                del hidden
                counts.append(sum(storages.values()))
    first, second, third = counts
    step = PROBE_LENGTHS[1] - PROBE_LENGTHS[0]
    pair = max(third - 2 * second + first, 0) / (2 * step**2)
    each = (second - first) / step - pair * (PROBE_LENGTHS[0] + PROBE_LENGTHS[1])
    fixed = first - PROBE_LENGTHS[0] * (each + PROBE_LENGTHS[0] * pair)
    return Activations(max(fixed, 0.0), max(each, 0.0), pair)


@contextmanager
def _counting(body: nn.Module) -> Iterator[dict[int, int]]:
    """The storages that autograd keeps, address -> bytes, weights left out; they live on inside.

    Of weights that are held in parts, what their module gathers while it computes is left out too.
    """

    def address(tensor: Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    known = {address(tensor) for tensor in (*body.parameters(), *body.buffers())}
    gathered: dict[nn.Module, set[int]] = {}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def enter(module: nn.Module, *_: Any) -> None:
        gathered[module] = {address(each) for each in module.parameters(recurse=False)} - known
        known.update(gathered[module])

    def leave(module: nn.Module, *_: Any) -> None:
        known.difference_update(gathered.pop(module))

    def pack(tensor: Tensor) -> Tensor:
        if address(tensor) not in known:
            storages[address(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    hooks: list[Any] = []
    for module in body.modules() if has_shards(body) else ():
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield storages
    finally:
        for hook in hooks:
            hook.remove()


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

    Gradients and optimizer states of what learns, the activations of the largest micro-batch, one
    layer of them once more for the gradients that pass through it, and a chunk of the head. With
    `keeps_float32` the optimizer works on float32 copies of weights in half precision, as
    DeepSpeed's does; that ranks share its states is left out, so this is the most needed.
    """
    total = 0.0
    for parameter in model.parameters():
        if parameter.requires_grad:
            held = held_part(parameter)
            total += held.nbytes
            if keeps_float32 and held.element_size() < torch.float32.itemsize:
                held = torch.empty(held.numel(), dtype=torch.float32, device="meta")
                total += held.nbytes
            total += optimizer.state_bytes(held)
    kept = activations.of(num_tokens, longest)
    layers = count_layers(extract_model_from_parallel(model).config) or 1
    return int(total + kept * (1 + 1 / layers) + HEAD_BYTES)


def choose_checkpointing(
    model: Any,
    arguments: Arguments,
    *,
    num_tokens: int,
    longest: int,
    is_padded: bool,
    autocast: Autocast,
) -> None:
    """Switches gradient checkpointing on where it is asked for, or where memory needs it.

    `auto` keeps all activations when the estimate fits on every rank. The model is as it will be,
    everything replaced, on the device of the run.
    """
    asked = arguments.training.gradient_checkpointing
    reason = ""
    if asked == "auto":
        device = next(model.parameters()).device
        activations = measure_activations(model, autocast, is_padded=is_padded)
        needed = training_bytes(
            model,
            activations,
            num_tokens,
            longest,
            OPTIMIZERS.get(arguments.training.optim),
            keeps_float32=arguments.training.deepspeed is not None,
        )
        needed, free = _worst(needed, free_memory(device), device)
        asked = free is None or needed > USABLE[device.type] * free
        if free is None:
            reason = f"; nothing says how much memory {device.type} has"
        else:
            reason = f"about {needed / 2**30:.1f} of {free / 2**30:.1f} GiB"
            reason = f"; without it {reason} would be needed" if asked else f", {reason} needed"
    if not asked:
        if reason:
            console.info(f"gradient checkpointing: off{reason}")
        return
    options = dict(arguments.training.gradient_checkpointing_kwargs or {})
    use_reentrant = bool(options.pop("use_reentrant", arguments.model.use_reentrant_gc))
    bare = extract_model_from_parallel(model)
    base = bare.get_base_model() if isinstance(bare, PeftModel) else bare
    said = checkpoint_activations(base, use_reentrant=use_reentrant, **options)
    if said:
        console.info(f"gradient checkpointing: {said}{reason}")


def checkpoint_activations(model: PreTrainedModel, *, use_reentrant: bool, **options: Any) -> str:
    """Switches gradient checkpointing on, from the first layer that learns; says of how many.

    Layers below it take no part in the backward pass, so they keep nothing and need not be
    computed twice. The reentrant form only sees a layer whose input requires a gradient; the
    output of what stands before the first learning layer is made to. Both forms give the same
    gradients; `options` are of `torch.utils.checkpoint.checkpoint`. A model that knows none of it
    is told of, and nothing is said.
    """
    if not model.supports_gradient_checkpointing:
        console.warn(f"{type(model).__name__} knows no gradient checkpointing; it stays off")
        return ""
    settings = {"use_reentrant": use_reentrant, **options}
    enable_checkpointing(model, settings)
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]

    def learns(module: nn.Module) -> bool:
        return any(parameter.requires_grad for parameter in module.parameters())

    first = next((i for i, (_, layer) in enumerate(layers) if learns(layer)), None)
    if first is None or learns(model.get_input_embeddings()):
        first = 0
    for _, layer in layers[:first]:
        layer.gradient_checkpointing = False
    if use_reentrant and layers:
        before: nn.Module = model.get_input_embeddings()
        if first > 0:
            parent, previous = (layers[i][0].rpartition(".")[0] for i in (first, first - 1))
            if parent == previous:
                before = layers[first - 1][1]
        before.register_forward_hook(_require_grad)
    said = f"{len(layers) - first} of {len(layers)} layers" if layers else "on"
    return f"{said}{', reentrant' if use_reentrant else ''}"


def recomputes_activations(model: nn.Module) -> bool:
    """Whether any layer has gradient checkpointing switched on."""
    return any(
        isinstance(each, GradientCheckpointingLayer) and each.gradient_checkpointing
        for each in model.modules()
    )


def _worst(needed: int, free: int | None, device: torch.device) -> tuple[int, int | None]:
    """The most needed and the least free of all ranks, so that all of them choose alike."""
    if free is None or not (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):
        return needed, free
    both = torch.tensor([-needed, free], device=device)
    torch.distributed.all_reduce(both, op=torch.distributed.ReduceOp.MIN)
    least = both.tolist()
    return -least[0], least[1]


def _require_grad(module: nn.Module, inputs: Any, output: Any) -> None:
    hidden = output[0] if isinstance(output, tuple) else output
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_(True)
