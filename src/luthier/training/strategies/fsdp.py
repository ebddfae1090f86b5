"""A run under FSDP2: what transformers is told of it, and weights between parts and whole."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    load_fsdp_model,
    save_fsdp_model,
    save_fsdp_optimizer,
)
from accelerate.utils.dataclasses import get_module_class_from_name
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments as LibraryArguments

from luthier import console
from luthier.arguments.record import Arguments
from luthier.errors import ArgumentsError, CheckpointError
from luthier.modeling.device import free_memory
from luthier.training.launched import launched_world
from luthier.training.strategies.fsdp_config import (
    FULL,
    SHARDED,
    SWITCH,
    Sharding,
    is_of_fsdp,
    read_sharding,
    said_by_launcher,
)

IN_PARTS = "pytorch_model_fsdp_0"
"""The folder of a checkpoint in which accelerate keeps weights in parts."""

OF_THE_OPTIMIZER = "optimizer_0"
"""The same for the optimizer's states."""

COMPUTED_IN = {"bf16": torch.bfloat16, "fp16": torch.float16}


# Settings


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
    sharding, world = reading.sharding, launched_world()
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
    training, model = arguments.training, arguments.model
    notes = []
    if reading.sharding.activation_checkpointing:
        training = training.model_copy(update={"gradient_checkpointing": True})
        notes.append("gradient_checkpointing = True (fsdp's activation_checkpointing)")
    if model.use_reentrant_gc:
        model = model.model_copy(update={"use_reentrant_gc": False})
        if training.gradient_checkpointing:
            notes.append("use_reentrant_gc = False (FSDP2 gathers layers in the backward pass)")
    for note in notes:
        console.info(note)
    every = (*arguments.notes, *reading.notes, *notes)
    return replace(arguments, training=training, model=model, notes=every)


# Before training


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


def place(model: nn.Module, accelerator: Accelerator) -> None:
    """Checks that the layers to hold are there, and brings the whole model to its device to probe.

    Transformers leaves a model that will be held in parts on the CPU. Where it does not fit whole
    on the device it stays there, and is probed there.

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
    if here.type == device.type or here.type == "meta":
        return
    free = free_memory(device)
    if free is not None and 2 * sum(each.nbytes for each in model.parameters()) < free:
        model.to(device)
    else:
        console.info(f"the model does not fit whole on {device}: it is probed on the CPU")


# Weights


def whole_weights(model: Any) -> dict[str, Tensor]:
    """The weights of a result, whole, by the names they are saved under; every rank has to call it.

    Args:
        model: in parts. Of a peft model only what learns is gathered.

    Returns:
        On the first rank, in the CPU's memory; empty on the others.
    """
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=isinstance(model, PeftModel)
    )
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    if isinstance(model, PeftModel):
        return weights
    return {name: weight for name, weight in weights.items() if name not in _tied(model)}


def save_state(
    accelerator: Accelerator, model: Any, optimizer: torch.optim.Optimizer, folder: str | Path
) -> None:
    """Writes what a checkpoint needs beside the whole weights; every rank has to call it.

    That is the optimizer's states, and with `SHARDED_STATE_DICT` the weights in parts.
    """
    plugin = accelerator.state.fsdp_plugin
    if holds_parts(accelerator):
        save_fsdp_model(plugin, accelerator, model, str(folder), adapter_only=True)
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(folder))


def load_weights(accelerator: Accelerator, model: Any, folder: str | Path) -> None:
    """Reads a checkpoint's weights into a model, in parts or whole; every rank has to call it.

    It may have been written by another number of ranks, or by a run without FSDP.

    Raises:
        CheckpointError: when the folder holds no weights.
    """
    folder = Path(folder)
    if (folder / IN_PARTS).is_dir():
        with as_saved(accelerator, folder):
            plugin = accelerator.state.fsdp_plugin
            load_fsdp_model(plugin, accelerator, model, str(folder), adapter_only=True)
        return
    names = _saved_names(model)
    weights: dict[str, Any] = {}
    if accelerator.is_main_process:
        saved = _read_whole(folder)
        weights = {names[name]: weight for name, weight in saved.items() if name in names}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, weights, options=options)


def holds_parts(accelerator: Accelerator) -> bool:
    """Whether checkpoints of this run hold weights in parts."""
    return SHARDED in str(accelerator.state.fsdp_plugin.state_dict_type)


@contextmanager
def as_saved(accelerator: Accelerator, folder: str | Path) -> Iterator[None]:
    """While open, accelerate reads a checkpoint in the way it was written."""
    plugin = accelerator.state.fsdp_plugin
    names = ("state_dict_type", "state_dict_config", "optim_state_dict_config")
    own = {name: getattr(plugin, name) for name in names}
    is_in_parts = (Path(folder) / OF_THE_OPTIMIZER).is_dir() or (Path(folder) / IN_PARTS).is_dir()
    plugin.state_dict_config = plugin.optim_state_dict_config = None
    plugin.set_state_dict_type(SHARDED if is_in_parts else FULL)
    try:
        yield
    finally:
        vars(plugin).update(own)


def _saved_names(model: Any) -> dict[str, str]:
    """The names of weights in a file -> those in the model."""
    if not isinstance(model, PeftModel):
        return {name: name for name in model.state_dict()}
    names = {name: name for name in model.state_dict()}
    # it looks at names only
    saved: dict[str, str] = get_peft_model_state_dict(
        model, state_dict=names, save_embedding_layers=False
    )
    return saved


def _read_whole(folder: Path) -> dict[str, Tensor]:
    for pattern in ("adapter_model.safetensors", "model.safetensors", "model-*.safetensors"):
        files = sorted(folder.glob(pattern))
        if files:
            return {name: weight for file in files for name, weight in load_file(file).items()}
    raise CheckpointError(
        f"{folder} holds no weights: neither adapter_model.safetensors nor model.safetensors nor "
        f"{IN_PARTS}. Name another checkpoint, or set overwrite_output_dir: true to start anew."
    )


def _tied(model: Any) -> set[str]:
    """Second names of weights that a model has under two."""
    return set(model.all_tied_weights_keys or ())


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
