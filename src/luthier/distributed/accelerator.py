"""What accelerate is told of a run."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
)
from transformers import TrainingArguments as LibraryArguments

from luthier.errors import ArgumentsError


def make_accelerator(args: LibraryArguments) -> Accelerator:
    """Accelerate's state of a run; micro-batches are counted by the plan, not by accelerate."""
    given = dict(args.accelerator_config.gradient_accumulation_kwargs or {})
    if "num_steps" in given:
        raise ArgumentsError(
            [
                "accelerator_config: num_steps is gradient_accumulation_steps here; set that, and "
                "leave num_steps out."
            ]
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
