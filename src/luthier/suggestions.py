"""What to change when memory runs out, and how much each change saves, by estimates."""

# L tokens of the longest sequence

from __future__ import annotations

from typing import Any, NamedTuple

from accelerate.utils import extract_model_from_parallel
from torch import nn

from luthier.arguments.choices import ADAPTERS, OPTIMIZERS
from luthier.arguments.record import Arguments, facts
from luthier.modeling.counts import count_layers
from luthier.modeling.device import is_out_of_memory
from luthier.modeling.dtypes import Autocast
from luthier.modeling.memory import Activations, measure_activations, recomputes_activations

SHOWN = 3

BYTES_OF_A_LAYER = 34
"""Activations of a layer for each token and unit of width in half precision, scores left out.

Korthikanti et al. 2022 (arXiv 2205.05198), equation 1.
"""

SMALLER_PIECES, SMALL_OPTIMIZER = "tokens_per_micro_batch", "adamw_8bit"

USUAL_RANK = 8


class Suggestion(NamedTuple):
    """A change of the configuration, and the bytes of a device that it saves."""

    change: str
    saved: float


def suggest(model: Any, arguments: Arguments, **known: Any) -> str:
    """What helps when memory has run out in a micro-batch, as text; see `find_suggestions`."""
    try:
        return describe_suggestions(find_suggestions(model, arguments, **known))
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        return "No memory is left even to estimate what helps."


def find_suggestions(
    model: Any,
    arguments: Arguments,
    *,
    num_tokens: int = 0,
    longest: int = 0,
    reference: int = 0,
    is_padded: bool,
    autocast: Autocast | None,
) -> list[Suggestion]:
    """Changes that save memory: the one that changes nothing else, then those that save most.

    Args:
        model: ready to train.
        arguments: of the run.
        num_tokens: of the micro-batch; 0 where it is not known.
        longest: tokens of its longest sequence; 0 where it is not known.
        reference: bytes of a reference that might be read before training.
        is_padded: whether micro-batches are padded.
        autocast: makes the context that the run computes in; None where this rank cannot compute
            anything by itself, so that activations are reckoned, not measured.
    """
    longest = longest or arguments.data.cutoff_len
    num_tokens = max(num_tokens, longest)
    bare = extract_model_from_parallel(model)
    training, finetuning = arguments.training, arguments.finetuning
    layers, width = count_layers(bare.config) or 1, bare.config.get_text_config().hidden_size
    if autocast is None:
        of_token = layers * width * BYTES_OF_A_LAYER * bare.dtype.itemsize / 2
        activations = Activations(0.0, of_token, 0.0)
    else:
        activations = measure_activations(model, autocast, is_padded=is_padded)
    found = [Suggestion("precompute_ref: true (the result stays the same)", reference)]

    kept = activations.of(num_tokens, longest)
    if num_tokens > longest:
        smaller = max(num_tokens // 2, longest)
        saved = kept - activations.of(smaller, longest)
        found.append(Suggestion(f"{SMALLER_PIECES}: {smaller} (the result stays the same)", saved))
    if not recomputes_activations(bare) and bare.supports_gradient_checkpointing:
        inputs = layers * num_tokens * width * bare.dtype.itemsize
        found.append(Suggestion("gradient_checkpointing: true", kept * (1 - 1 / layers) - inputs))
    if longest > arguments.data.cutoff_len // 2:
        half = max(arguments.data.cutoff_len // 2, 1)
        saved = activations.of(longest, longest) - activations.of(half, half)
        found.append(Suggestion(f"cutoff_len: {half}", saved))
    is_mixed = training.bf16 or training.fp16
    if bare.device.type != "cpu" and not is_mixed and bare.dtype.itemsize == 4:
        found.append(Suggestion("bf16: true", kept / 2))

    trained = [each for each in bare.parameters() if each.requires_grad]
    weights = sum(each.nbytes for each in trained)
    states = sum(OPTIMIZERS.get(training.optim).state_bytes(each) for each in trained)
    packed = sum(OPTIMIZERS.get(SMALL_OPTIMIZER).state_bytes(each) for each in trained)
    found.append(Suggestion(f"optim: {SMALL_OPTIMIZER} (needs bitsandbytes)", states - packed))
    has_rank = finetuning.finetuning_type in facts()["lora_rank"].methods
    if not ADAPTERS.get(finetuning.finetuning_type).keeps_apart:
        added = sum(
            4 * USUAL_RANK * (each.in_features + each.out_features)
            for each in bare.modules()
            if isinstance(each, nn.Linear)
        )
        saved = states + weights - added * (2 + states / max(weights, 1))
        found.append(Suggestion("finetuning_type: lora", saved))
    elif finetuning.lora_rank > 1 and has_rank:
        rank = finetuning.lora_rank // 2
        found.append(Suggestion(f"lora_rank: {rank}", (states + 2 * weights) / 2))

    found = sorted((each for each in found if each.saved > 0), key=lambda each: -each.saved)
    return sorted(found, key=lambda each: not each.change.startswith(SMALLER_PIECES))


def describe_suggestions(found: list[Suggestion]) -> str:
    """The first few as lines of text."""
    if not found:
        return "Use a device with more memory, or a smaller model."
    lines = []
    for number, (change, saved) in enumerate(found[:SHOWN], 1):
        mebibytes = saved / 2**20
        said = f"{mebibytes:,.0f}" if mebibytes >= 10 else f"{mebibytes:.2g}"
        lines.append(f"  {number}. {change}: about {said} MiB")
    return "What saves most here, by estimate:\n" + "\n".join(lines)
