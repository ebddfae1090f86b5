"""A run under FSDP2: what transformers and accelerate are told of it, and how it steps."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
)
from accelerate.utils.dataclasses import get_module_class_from_name
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments as LibraryArguments

from luthier import console
from luthier.arguments.record import Arguments
from luthier.distributed import fsdp_state
from luthier.distributed.fsdp_config import (
    SHARDED,
    SWITCH,
    is_of_fsdp,
    read_sharding,
    said_by_launcher,
)
from luthier.distributed.strategy import SCHEDULER, Accepts, Learner, Strategy, learned
from luthier.errors import ArgumentsError
from luthier.modeling.device import free_memory
from luthier.processes.environment import distributed_environment
from luthier.processes.ranks import agree_all

WHOLE_GRADIENT = 1 << 30
"""Bytes of a gradient in float32 up to which every rank adds up a whole one of its step."""

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
            "fsdp: its processes are started by a launcher, and this one was not. Use "
            "`luthier train --nproc N ...`, `accelerate launch` or torchrun."
        )
    if sharding is not None and on_cpu:
        if world.world_size == 1:
            console.info("fsdp has no effect: one process on a CPU holds all")
            sharding = None
        elif torch.accelerator.is_available():
            raise ArgumentsError(
                "fsdp: torch holds the parts on the accelerator it sees, and use_cpu says to "
                'leave it alone. Hide it, too (CUDA_VISIBLE_DEVICES=""), or leave use_cpu.'
            )
        elif sharding.cpu_offload:
            console.info("fsdp: cpu_offload has no effect: the weights are on the CPU")
            sharding = replace(sharding, cpu_offload=False)
    for name in [name for name in os.environ if is_of_fsdp(name)]:
        del os.environ[name]
    if sharding is None:
        return {}
    os.environ |= {
        SWITCH: "true",
        "FSDP_VERSION": "2",
        "FSDP_OFFLOAD_PARAMS": str(sharding.cpu_offload).lower(),
        "FSDP_STATE_DICT_TYPE": sharding.state_dict_type,
    }
    return {"fsdp": True, "fsdp_config": sharding.library_config()}


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


class Fsdp(Strategy):
    """Weights, gradients and states sharded; results are written whole, from whatever parts.

    Transformers' way writes no result with `SHARDED_STATE_DICT`, a second copy of the weights
    without, and reads only what was written in the way that this run would write. This one also
    reads what others have written, and experts, which transformers 5.23 stores in another form than
    it trains them in.
    """

    shards_parameters = True
    _exchanges_every_gradient = False

    def begin(self, learner: Learner) -> None:
        """Gives accelerate's state FSDP where it has left it out, and the dtypes we compute in.

        accelerate 1.15 knows FSDP on accelerators only: on CPUs it forgets the settings without a
        word and would train with DDP. Its policy for half precision adds gradients up in half
        precision and rounds what the model returns, which is a loss here; ours does neither.
        """
        state = learner.accelerator.state
        if getattr(state, "fsdp_plugin", None) is None:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**learner.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=COMPUTED_IN.get(learner.accelerator.mixed_precision),
            reduce_dtype=torch.float32,
        )
        asked = learner.accelerator.gradient_state.plugin_kwargs
        self._exchanges_every_gradient = bool(asked.get("sync_each_batch"))

    def place(self, learner: Learner) -> Arguments:
        """Checks that the layers to hold are there, and brings the whole model to its device.

        Transformers leaves a model that will be held in parts on the CPU. Where it does not fit
        whole on the device it is looked at on the CPU, which says nothing of the device's memory:
        the arguments then get gradient checkpointing.

        Raises:
            ArgumentsError: when the model has no layer of a class that was named.
        """
        model, device, arguments = learner.model, learner.accelerator.device, learner.arguments
        named = learner.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap or ()
        absent = [name for name in named if get_module_class_from_name(model, name) is None]
        if absent:
            own = ", ".join(sorted(model._no_split_modules or ())) or "none of its own"
            raise ArgumentsError(
                f"fsdp_transformer_layer_cls_to_wrap: the model has no layer of class "
                f"{', '.join(absent)}; it names {own}. Leave it out to take those."
            )
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

    def prepare(self, learner: Learner, max_steps: int, checkpoint: str | None) -> None:
        """The model becomes its sharded self, and reads what its ranks hold of a checkpoint."""
        learner.create_optimizer()
        model, learner.optimizer = learner.accelerator.prepare(learner.model, learner.optimizer)
        learner.create_scheduler(max_steps)
        learner.model = learner.model_wrapped = model
        if hasattr(model, "generate"):  # it reads weights outside of a forward pass
            register_fsdp_forward_method(model, "generate")
        if checkpoint is not None:
            fsdp_state.load_weights(model, checkpoint)
            schedule = Path(checkpoint) / SCHEDULER
            if schedule.is_file():  # written beside every optimizer
                fsdp_state.load_optimizer(model, learner.optimizer, checkpoint)
                learner.lr_scheduler.load_state_dict(torch.load(schedule, weights_only=True))
        console.info(f"fsdp: {describe(model)}")
        size = sum(each.numel() for each in learned(model)) * torch.float32.itemsize
        if size > WHOLE_GRADIENT:
            self._exchanges_every_gradient = True
            console.info(
                "fsdp: gradients are exchanged with every micro-batch (until the end of a step "
                f"they would take {console.gibibytes(size)})"
            )

    def no_sync(self, learner: Learner, *, is_last: bool) -> AbstractContextManager[Any]:
        """Without the exchange, where a whole gradient has room."""
        if is_last or self._exchanges_every_gradient:
            return nullcontext()
        context: AbstractContextManager[Any] = learner.accelerator.no_sync(learner.model_wrapped)
        return context

    def clip(self, learner: Learner, accepts: Accepts) -> Tensor | float | None:
        """Accelerate's way, which knows gradients in parts."""
        bound = learner.args.max_grad_norm
        norm: Tensor = learner.accelerator.clip_grad_norm_(
            learner.model_wrapped.parameters(), bound if bound > 0 else math.inf
        )
        accepts(norm)
        return norm

    def result_weights(self, learner: Learner) -> Mapping[str, Tensor] | None:
        """Gathered to the first rank."""
        return fsdp_state.whole_weights(learner.model)

    def save_weights(self, learner: Learner, folder: str) -> bool:
        """In parts where checkpoints are to hold those; an adapter is small and always whole."""
        if isinstance(learner.model, PeftModel) or not self._holds_parts(learner):
            return False
        fsdp_state.save_weights(learner.model, folder)
        if learner.args.should_save:
            learner.model.config.save_pretrained(folder)
            learner.processing_class.save_pretrained(folder)
        return True

    def save_states(self, learner: Learner, folder: str) -> None:
        """By the names of their weights, so that any number of ranks can read them."""
        in_parts = self._holds_parts(learner)
        fsdp_state.save_optimizer(learner.model, learner.optimizer, folder, in_parts=in_parts)
        if learner.args.should_save:
            torch.save(learner.lr_scheduler.state_dict(), Path(folder) / SCHEDULER)

    def load_weights(self, learner: Learner, folder: str | Path) -> None:
        """Into the parts, which are made first."""
        self.prepare(learner, learner.state.max_steps, None)
        fsdp_state.load_weights(learner.model_wrapped, folder)

    def load_best(self, learner: Learner, folder: str) -> None:
        """Into the parts."""
        fsdp_state.load_weights(learner.model, folder)

    def _holds_parts(self, learner: Learner) -> bool:
        return SHARDED in str(learner.accelerator.state.fsdp_plugin.state_dict_type)


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
