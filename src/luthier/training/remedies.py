"""What to change when memory runs out, and how much each change saves, by estimates."""

# L tokens of the longest sequence

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from accelerate.utils import extract_model_from_parallel
from torch import nn

from luthier.arguments.record import Arguments
from luthier.modeling.checkpointing import recomputes_activations
from luthier.modeling.counts import count_layers
from luthier.modeling.dtypes import Autocast
from luthier.modeling.memory import Activations, measure_activations, state_bytes

SHOWN = 3

BYTES_OF_A_LAYER = 34
"""Activations of a layer for each token and unit of width in half precision, scores left out.

Korthikanti et al. 2022 (arXiv 2205.05198), equation 1.
"""

SMALLER_PIECES, SMALL_OPTIMIZER = "tokens_per_micro_batch", "adamw_8bit"

USUAL_RANK = 8


class Remedy(NamedTuple):
    """A change of the configuration, and the bytes of a device that it saves."""

    change: str
    saved: float


def find_remedies(
    model: Any,
    arguments: Arguments,
    *,
    num_tokens: int,
    longest: int,
    is_padded: bool,
    autocast: Autocast | None,
) -> list[Remedy]:
    """Changes that save memory: the one that changes nothing else, then those that save most.

    Args:
        model: ready to train.
        arguments: of the run.
        num_tokens: of the largest micro-batch; `longest` where it cannot be smaller.
        longest: tokens of the longest example.
        is_padded: whether micro-batches are rectangles.
        autocast: makes the context that the run computes in; None where this rank cannot compute
            anything by itself, so that activations are reckoned, not measured.
    """
    bare = extract_model_from_parallel(model)
    layers = count_layers(bare.config) or 1
    if autocast is None:
        activations = _reckon_activations(bare, layers)
    else:
        activations = measure_activations(model, autocast, is_padded=is_padded)
    found = [
        *_of_activations(bare, arguments, activations, layers, num_tokens, longest),
        *_of_states(bare, arguments),
    ]
    found = sorted((each for each in found if each.saved > 0), key=lambda each: -each.saved)
    return sorted(found, key=lambda each: not each.change.startswith(SMALLER_PIECES))


def describe_remedies(remedies: list[Remedy]) -> str:
    """The first few as lines of text."""
    if not remedies:
        return "Use a device with more memory, or a smaller model."
    lines = [
        f"  {number}. {each.change}: about {_mebibytes(each.saved)} MiB"
        for number, each in enumerate(remedies[:SHOWN], 1)
    ]
    return "What saves most here, by estimate:\n" + "\n".join(lines)


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f}" if count >= 10 * 2**20 else f"{count / 2**20:.2g}"


def _of_activations(
    model: Any,
    arguments: Arguments,
    activations: Activations,
    layers: int,
    num_tokens: int,
    longest: int,
) -> Iterator[Remedy]:
    training, cutoff = arguments.training, arguments.data.cutoff_len
    kept = activations.of(num_tokens, longest)
    if num_tokens > longest:
        smaller = max(num_tokens // 2, longest)
        saved = kept - activations.of(smaller, longest)
        yield Remedy(f"{SMALLER_PIECES}: {smaller} (the result stays the same)", saved)
    if not recomputes_activations(model) and model.supports_gradient_checkpointing:
        width = model.config.get_text_config().hidden_size
        inputs = layers * num_tokens * width * model.dtype.itemsize
        yield Remedy("gradient_checkpointing: true", kept * (1 - 1 / layers) - inputs)
    if longest > cutoff // 2:
        half = max(cutoff // 2, 1)
        longest_alone = activations.of(longest, longest)
        yield Remedy(f"cutoff_len: {half}", longest_alone - activations.of(half, half))
    if model.device.type != "cpu" and not (training.bf16 or training.fp16):
        if model.dtype.itemsize == 4:
            yield Remedy("bf16: true", kept / 2)


def _of_states(model: Any, arguments: Arguments) -> Iterator[Remedy]:
    method, optim = arguments.finetuning.finetuning_type, str(arguments.training.optim)
    trained = [each for each in model.parameters() if each.requires_grad]
    states = sum(state_bytes(each, optim) for each in trained)
    smaller = sum(state_bytes(each, SMALL_OPTIMIZER) for each in trained)
    yield Remedy(f"optim: {SMALL_OPTIMIZER} (needs bitsandbytes)", states - smaller)
    held = states + sum(each.nbytes for each in trained)
    if method == "lora":
        lora_rank = arguments.finetuning.lora_rank
        if lora_rank > 1:
            weights = sum(each.nbytes for each in trained)
            yield Remedy(f"lora_rank: {lora_rank // 2}", (held + weights) / 2)
    else:
        added = sum(
            4 * USUAL_RANK * (each.in_features + each.out_features)
            for each in model.modules()
            if isinstance(each, nn.Linear)
        )
        yield Remedy("finetuning_type: lora", held - added * (2 + states / max(held - states, 1)))


def _reckon_activations(model: Any, layers: int) -> Activations:
    width = model.config.get_text_config().hidden_size
    return Activations(0.0, layers * width * BYTES_OF_A_LAYER * model.dtype.itemsize / 2, 0.0)
