"""A run under FSDP2: what transformers and accelerate are told of it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
)
from accelerate.utils.dataclasses import get_module_class_from_name
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments as LibraryArguments

from luthier import console
from luthier.arguments.record import Arguments
from luthier.distributed.fsdp_config import (
    SHARDED,
    SWITCH,
    Sharding,
    is_of_fsdp,
    read_sharding,
    said_by_launcher,
)
from luthier.errors import ArgumentsError
from luthier.modeling.device import free_memory
from luthier.processes.environment import distributed_environment
from luthier.processes.ranks import agree_all

COMPUTED_IN = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""accelerate's word for mixed precision -> the dtype of products."""


def fsdp_settings(arguments: Arguments, *, on_cpu: bool) -> dict[str, Any]:
    """What the library's arguments take as `fsdp` and `fsdp_config`; empty without FSDP.

    What was translated is said. The variables by which accelerate's launcher speaks are written
    anew: transformers reads some of them while a model is loaded, and accelerate chooses the
    processes' way to talk by others.

    Raises:
        ArgumentsError: when the settings contradict each other, or no launcher is at work.
    """
    reading = read_sharding(arguments, said_by_launcher())
    if reading.problems:
        raise ArgumentsError(reading.problems)
    for note in reading.notes:
        console.info(note)
    sharding, world = reading.sharding, distributed_environment()
    if sharding is not None and not arguments.training.do_train:
        console.info("fsdp has no effect without do_train: every process holds all weights")
        sharding = None
    if sharding is not None and not world.is_launched:
        raise ArgumentsError(
            [
                "fsdp: its processes are started by a launcher, and this one was not. Use "
                "`luthier train --nproc N ...`, `accelerate launch` or torchrun."
            ]
        )
    if sharding is not None and on_cpu:
        if world.world_size == 1:
            console.info("fsdp has no effect: one process on a CPU holds all")
            sharding = None
        elif torch.accelerator.is_available():
            raise ArgumentsError(
                [
                    "fsdp: torch holds the parts on the accelerator it sees, and use_cpu says to "
                    'leave it alone. Hide it, too (CUDA_VISIBLE_DEVICES=""), or leave use_cpu.'
                ]
            )
        elif sharding.cpu_offload:
            console.info("fsdp: cpu_offload has no effect: the weights are on the CPU")
            sharding = replace(sharding, cpu_offload=False)
    _write_variables(sharding)
    if sharding is None:
        return {}
    return {"fsdp": True, "fsdp_config": sharding.library_config()}


def _write_variables(sharding: Sharding | None) -> None:
    for name in [name for name in os.environ if is_of_fsdp(name)]:
        del os.environ[name]
    if sharding is not None:
        os.environ |= {
            SWITCH: "true",
            "FSDP_VERSION": "2",
            "FSDP_OFFLOAD_PARAMS": str(sharding.cpu_offload).lower(),
            "FSDP_STATE_DICT_TYPE": sharding.state_dict_type,
        }


def with_sharding(arguments: Arguments, library: LibraryArguments) -> Arguments:
    """The same arguments with what follows from FSDP for gradient checkpointing, which is said.

    Layers are gathered by hooks in the backward pass, which the reentrant form does not call.
    """
    if not library.fsdp:
        return arguments
    reading = read_sharding(arguments, said_by_launcher())
    assert reading.sharding is not None
    notes = []
    if reading.sharding.activation_checkpointing:
        arguments = arguments.changed(gradient_checkpointing=True)
        notes.append("gradient_checkpointing = True (fsdp's activation_checkpointing)")
    if arguments.model.use_reentrant_gc:
        arguments = arguments.changed(use_reentrant_gc=False)
        if arguments.training.gradient_checkpointing:
            notes.append("use_reentrant_gc = False (FSDP2 gathers layers in the backward pass)")
    for note in notes:
        console.info(note)
    return arguments.noted(*reading.notes, *notes)


def take_up(accelerator: Accelerator, library: LibraryArguments) -> None:
    """Gives accelerate's state FSDP where it has left it out, and the dtypes that we compute in.

    accelerate 1.15 knows FSDP on accelerators only: on CPUs it forgets the settings without a word
    and would train with DDP. Its policy for half precision adds gradients up in half precision and
    rounds what the model returns, which is a loss here; ours does neither.
    """
    state = accelerator.state
    if getattr(state, "fsdp_plugin", None) is None:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**library.fsdp_plugin_args)
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=COMPUTED_IN.get(accelerator.mixed_precision), reduce_dtype=torch.float32
    )


def place(model: nn.Module, accelerator: Accelerator, arguments: Arguments) -> Arguments:
    """Checks that the layers to hold are there, and brings the whole model to its device to probe.

    Transformers leaves a model that will be held in parts on the CPU. Where it does not fit whole
    on the device it stays there and is probed there, which says nothing of the device's memory.

    Returns:
        The arguments, with gradient checkpointing in that case.

    Raises:
        ArgumentsError: when the model has no layer of a class that was named.
    """
    plugin = accelerator.state.fsdp_plugin
    named = plugin.transformer_cls_names_to_wrap or ()
    absent = [name for name in named if get_module_class_from_name(model, name) is None]
    if absent:
        own = ", ".join(sorted(model._no_split_modules or ())) or "none of its own"  # type: ignore[arg-type]
        raise ArgumentsError(
            [
                f"fsdp_transformer_layer_cls_to_wrap: the model has no layer of class "
                f"{', '.join(absent)}; it names {own}. Leave it out to take those."
            ]
        )
    device = accelerator.device
    here = next(model.parameters()).device
    if here.type == device.type:
        return arguments
    free, size = free_memory(device), sum(each.nbytes for each in model.parameters())
    if agree_all(free is not None and 2 * size < free):
        model.to(device)
        return arguments
    console.info(f"the whole model may not fit on {device}: it is probed on the CPU")
    if arguments.training.gradient_checkpointing != "auto":
        return arguments
    note = "gradient_checkpointing = True (nothing was measured on the device)"
    console.info(note)
    return arguments.changed(gradient_checkpointing=True).noted(note)


def holds_parts(accelerator: Accelerator) -> bool:
    """Whether checkpoints of this run hold weights in parts."""
    return SHARDED in str(accelerator.state.fsdp_plugin.state_dict_type)


def bytes_of_whole_gradient(model: nn.Module) -> int:
    """What the gradient of all that learns takes in float32, when it does not lie in parts."""
    learned = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return learned * torch.float32.itemsize


def describe(model: nn.Module) -> str:
    """What of a model is whole at a time, and how its weights lie."""
    kinds = Counter(
        type(module).__name__.removeprefix("FSDP")
        for module in model.modules()
        if isinstance(module, FSDPModule) and module is not model
    )
    whole = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "all at once"
    parts = sum(each.to_local().numel() for each in model.parameters() if isinstance(each, DTensor))
    total = sum(each.numel() for each in model.parameters())
    return f"weights in parts, {parts:,} of {total:,} here; whole while it computes: {whole}"
