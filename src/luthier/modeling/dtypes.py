"""The dtypes of a run: of the weights as they are loaded, and of those that learn.

| run                               | weights are loaded | trained ones | computed in      |
|-----------------------------------|--------------------|--------------|------------------|
| training, pure_bf16               | bfloat16           | bfloat16     | bfloat16         |
| training, bf16                    | bfloat16           | float32      | bfloat16 (auto)  |
| training, fp16                    | float16            | float32      | float16 (auto)   |
| training, none of these           | float32            | float32      | float32          |
| not training, infer_dtype given   | infer_dtype        |              | infer_dtype      |
| not training, infer_dtype auto    | as stored          |              | as stored        |

"auto" is torch's autocast, which the trainer switches on; it works on a CPU too. `full` with bf16
or fp16 loads float32 at once, since every weight learns. A GGUF file has no dtype to keep: "as
stored" means bfloat16 or float16 when bf16 or fp16 is set, float32 otherwise. Weights stored in
bfloat16 are answered with in float16 on a GPU without bfloat16. A CPU without half-precision
instructions computes in float32. DeepSpeed holds and computes all weights in bfloat16 or float16
when bf16 or fp16 is set, and keeps float32 copies of those that learn; they are loaded so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from luthier import console
from luthier.arguments.choices import ADAPTERS
from luthier.arguments.record import Arguments, facts
from luthier.modeling.sharded import is_sharded

Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Makes the context that a run computes in."""


@dataclass(frozen=True)
class Dtypes:
    """What to load and what to train in."""

    weights: torch.dtype | Literal["auto"]  # of all weights as loaded; "auto" keeps what is stored
    trained: torch.dtype | None  # of the weights that learn; None leaves them as loaded


def choose_dtypes(
    arguments: Arguments,
    *,
    is_trainable: bool,
    stored: torch.dtype | None,
    is_gguf: bool = False,
) -> Dtypes:
    """The row of the table that a run stands in.

    `stored` is the dtype that the model's configuration states, if any; `is_gguf` where the weights
    come from a GGUF file, or there are none yet.
    """
    training, finetuning = arguments.training, arguments.finetuning
    half = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
    if is_trainable:
        if finetuning.pure_bf16:
            return Dtypes(torch.bfloat16, torch.bfloat16)
        if half is not None and training.deepspeed is not None:
            return Dtypes(half, half)
        if half is None or ADAPTERS.get(finetuning.finetuning_type).trains_all:
            return Dtypes(torch.float32, torch.float32)
        return Dtypes(half, torch.float32)
    asked = arguments.model.infer_dtype
    if asked != "auto":
        return Dtypes(getattr(torch, asked), None)
    if stored is torch.bfloat16:
        if is_emulated(torch.bfloat16, training.use_cpu):
            return Dtypes(torch.float32, None)
        if torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
            return Dtypes(torch.float16, None)
    return Dtypes(half or torch.float32 if is_gguf else "auto", None)


def is_emulated(dtype: torch.dtype, use_cpu: bool) -> bool:
    """Whether the run is on a CPU that has no products of a half-precision dtype.

    Torch then makes them one number at a time: in bfloat16 1.3 against 78 GFLOP/s in float32 on
    one core of an EPYC with AVX2.
    """
    if not use_cpu and torch.accelerator.is_available():
        return False
    if dtype is torch.bfloat16:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return not torch.ops.mkldnn._is_mkldnn_fp16_supported()


def computed_dtype(mixed_precision: str, model: Any) -> torch.dtype:
    """The dtype of a model's products: accelerate's word for it, or that of its weights."""
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
    dtype: torch.dtype = mixed.get(mixed_precision, model.dtype)
    return dtype


def autocasting(model: nn.Module) -> AbstractContextManager[Any]:
    """What a model needs to compute outside of the run's own context: to be looked at, to answer.

    Weights that learn are float32 beside frozen ones in half precision, and torch multiplies no two
    dtypes: such a model computes in that of its frozen ones, as it does in training.
    """
    found = {each.dtype: each.device for each in model.parameters() if each.is_floating_point()}
    half = next((dtype for dtype in found if dtype in (torch.bfloat16, torch.float16)), None)
    if half is None or len(found) == 1:
        return nullcontext()
    return torch.autocast(found[half].type, dtype=half)


def held_dtypes(model: nn.Module) -> dict[str, str]:
    """The dtypes in which weights lie, by whether they learn: `trained` and `frozen`."""
    found: dict[str, set[str]] = {"trained": set(), "frozen": set()}
    for each in model.parameters():
        found["trained" if each.requires_grad else "frozen"].add(str(each.dtype)[len("torch.") :])
    return {kind: " and ".join(sorted(names)) for kind, names in found.items() if names}


def without_emulation(arguments: Arguments) -> Arguments:
    """The same arguments with float32 for a half precision the CPU does not have, which is said."""
    values, use_cpu = arguments.flat(), arguments.training.use_cpu
    asked = sorted(
        name
        for name, known in facts().items()
        if known.half and values[name] and is_emulated(getattr(torch, known.half), use_cpu)
    )
    if not asked:
        return arguments
    note = (
        f"{' and '.join(asked)}: this CPU has no such instructions and would emulate them some "
        "fifty times slower; the run computes in float32, which rounds less"
    )
    console.warn(note)
    return arguments.changed(**dict.fromkeys(asked, False)).noted(note)


def cast_trained(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Casts the parameters that learn, in place; sharded ones stay as they are."""
    if dtype is None:
        return
    for parameter in model.parameters():
        is_cast = parameter.requires_grad and parameter.is_floating_point()
        if is_cast and not is_sharded(parameter):
            parameter.data = parameter.data.to(dtype)


def upcast(model: Any, *, norms: bool, head_output: bool) -> None:
    """Puts into float32, in place, what is asked for, and what float32 embeddings need beside them.

    That is all norms (`upcast_layernorm`) and what the head gives (`upcast_lmhead_output`) of a
    bare model with what learns cast.
    """
    if norms:
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and any(word in name for word in ("norm", "ln")):
                parameter.data = parameter.data.float()
    learned = [each for each in model.get_input_embeddings().parameters() if each.requires_grad]
    if any(each.dtype == torch.float32 for each in learned):
        # what they give is float32, and beside it torch's layer_norm takes no halves on a CPU
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()
    head = model.get_output_embeddings()
    if head_output and isinstance(head, nn.Module):
        head.register_forward_hook(lambda module, inputs, output: output.float())
