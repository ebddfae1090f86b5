"""What accelerate is told of a run, and the one answer to how its weights are held."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    str_to_bool,
)
from transformers import TrainingArguments as LibraryArguments

from luthier.distributed.strategy import DEEPSPEED_STAGES, Strategy
from luthier.errors import ArgumentsError


def find_strategy(library_arguments: LibraryArguments) -> Strategy:
    """How a run's processes hold what it trains; the process group exists by then."""
    plugin = library_arguments.deepspeed_plugin
    if plugin is not None:
        from luthier.distributed.deepspeed import Zero

        return Zero(DEEPSPEED_STAGES[int(plugin.zero_stage)])
    if library_arguments.fsdp or str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        from luthier.distributed.fsdp import Fsdp

        return Fsdp("fsdp2")
    from luthier.distributed.whole import Whole

    return Whole("ddp" if library_arguments.world_size > 1 else "single")


def make_accelerator(args: LibraryArguments) -> Accelerator:
    """Accelerate's state of a run; micro-batches are counted by the plan, not by accelerate."""
    given = dict(args.accelerator_config.gradient_accumulation_kwargs or {})
    if "num_steps" in given:
        raise ArgumentsError(
            "accelerator_config: num_steps is gradient_accumulation_steps here; set that, and "
            "leave num_steps out."
        )
    ddp = {
        name: value
        for name in ("find_unused_parameters", "bucket_cap_mb", "broadcast_buffers", "static_graph")
        if (value := getattr(args, f"ddp_{name}")) is not None
    }
    fsdp = args.fsdp_plugin_args
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        deepspeed_plugin=args.deepspeed_plugin,
        fsdp_plugin=None if fsdp is None else FullyShardedDataParallelPlugin(**fsdp),
        gradient_accumulation_plugin=GradientAccumulationPlugin(**given, num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(**ddp)],
        dynamo_plugin=TorchDynamoPlugin(
            backend=args.torch_compile_backend, mode=args.torch_compile_mode
        ),
    )
    if args.fp16 and args.use_cpu and args.deepspeed_plugin is None:
        # accelerate leaves float16 on a CPU out without a word
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu")
    return accelerator
