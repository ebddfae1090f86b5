"""A run under DeepSpeed: its settings, its backward passes, its steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_init

from luthier import console
from luthier.arguments.record import Arguments
from luthier.distributed.deepspeed_config import (
    Config,
    complete,
    read_config,
    stage_of,
    value_of,
)
from luthier.distributed.strategy import DEEPSPEED_STAGES, WORDS
from luthier.errors import ArgumentsError
from luthier.modeling.sharded import has_shards
from luthier.processes.environment import distributed_environment

_stages: list[int] = []
"""Of the runs that this process has made."""


def deepspeed_settings(arguments: Arguments) -> Config | None:
    """What the library's arguments take as `deepspeed`; None where DeepSpeed takes no part.

    What was changed in the user's configuration is said. The numbers of the batch stand at
    `auto`, and the library puts in the user's.

    Raises:
        ArgumentsError: when the process was not started by a launcher.
    """
    given = arguments.training.deepspeed
    if given is None:
        return None
    if not distributed_environment().is_launched:
        raise ArgumentsError(
            [
                "deepspeed: its processes are started by a launcher, and this one was not. Use "
                "`luthier train --nproc N ...` (N may be 1), `deepspeed src/train.py ...` or "
                "torchrun."
            ]
        )
    config, lines = complete(read_config(given), arguments)
    stage = stage_of(config)
    if _stages:
        raise ArgumentsError(
            [
                "deepspeed: this process has made a run with DeepSpeed before, whose groups live "
                "on in it. Start another process for another run."
            ]
        )
    _stages.append(stage)
    console.info(WORDS[DEEPSPEED_STAGES[stage]])
    for line in lines:
        console.info(line)
    if stage == 0 and (arguments.training.bf16 or arguments.training.fp16):
        console.warn(
            "deepspeed: stage 0 keeps no float32 copy of weights in half precision, so small "
            "updates are lost. Use stage 1 or 2, or leave deepspeed out."
        )
    is_offloaded = value_of(config, "zero_optimization.offload_optimizer.device", "none") != "none"
    brings_adam = "adam" in str(value_of(config, "optimizer.type", "")).lower()
    if brings_adam and value_of(config, "optimizer.params.torch_adam") is True:
        return config
    if is_offloaded or brings_adam:
        _prepare_to_compile("cpu_adam" if is_offloaded else "fused_adam")
    return config


def _prepare_to_compile(name: str) -> None:
    """Says that a part of DeepSpeed is compiled first, if it is.

    Raises:
        ArgumentsError: when there is no compiler.
    """
    from deepspeed.git_version_info import installed_ops
    from torch.utils.cpp_extension import _get_build_directory, get_cxx_compiler

    folder = Path(_get_build_directory(name, verbose=False))
    if installed_ops.get(name) or any(folder.glob(f"{name}*.so")):
        return
    compiler = get_cxx_compiler()  # type: ignore[no-untyped-call]
    if shutil.which(compiler) is None:
        raise ArgumentsError(
            [
                f"deepspeed: offload_optimizer needs {name}, which is compiled at the first start, "
                f"and there is no compiler ({compiler}). Install one, or take offload_optimizer "
                "out."
            ]
        )
    console.info(f"DeepSpeed compiles {name}, once; this takes a minute ({folder})")
    lock = folder / "lock"
    if lock.exists():
        console.warn(
            f"{lock} says that another process compiles it now. If there is none, remove that "
            "file: this run would wait for ever."
        )


def settle(trainer: Trainer) -> None:
    """Puts the model where its checks at the start find it, before there is an engine."""
    allow_parts()
    trainer.accelerator.gradient_accumulation_steps = trainer.args.hf_deepspeed_config.config[
        "gradient_accumulation_steps"
    ]  # accelerate takes DeepSpeed's in any case, and warns
    if not has_shards(trainer.model):
        trainer.model.to(trainer.args.device)


def gather_to_evaluate(trainer: Any) -> None:
    """Makes the engine that gathers weights in parts, for an evaluation without training."""
    if trainer.deepspeed is None and has_shards(trainer.model):
        deepspeed_init(trainer, num_training_steps=0, inference=True)
        trainer.deepspeed = trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)


def allow_parts() -> None:
    """Lets DeepSpeed's parts of a checkpoint be read, which are pickled, wherever that is done.

    Only plain data is read in a run; what the parts need beside it are the classes named here.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    needed: list[Any] = [ZeroStageEnum, fragment_address, LossScaler, DynamicLossScaler]
    torch.serialization.add_safe_globals(needed)


def keep_clipping(engine: Any) -> None:
    """Clips as this run is told to; the optimizers of DeepSpeed restore a checkpoint's bound."""
    if engine.zero_optimization():
        engine.optimizer.clip_grad = engine.gradient_clipping()


def backward(engine: Any, loss: Tensor, *, is_last: bool) -> None:
    """Adds the gradient of a micro-batch; DeepSpeed divides it by nothing but the ranks.

    Args:
        engine: the wrapped model.
        loss: this rank's sum, scaled so that its mean over ranks is the loss.
        is_last: whether the step's gradient is complete after it. Stages 0 and 1 exchange
            gradients then only; stages 2 and 3 hold parts of them and exchange each.
    """
    engine.set_gradient_accumulation_boundary(is_boundary=is_last)
    engine.backward(loss, scale_wrt_gas=False)


def step(engine: Any, accepts: Callable[[float | None], bool] = lambda _: True) -> float | None:
    """Clips the gradient, updates the weights and clears the gradient.

    Args:
        engine: the wrapped model.
        accepts: told the norm; drops the gradient or ends the run where it is not finite. Stages 1
            to 3 leave such a step out by themselves, so there it is told afterwards.

    Returns:
        The gradient's norm before it was clipped, of all ranks together.
    """
    if engine.zero_optimization() or _holds_half(engine):
        engine.step()
        told = engine.get_global_grad_norm()
        norm = None if told is None else float(told)
        if not accepts(norm):
            engine.optimizer.overflow = False  # the library would hold the learning rate back
        return norm
    norm = float(_norm(engine))
    if accepts(norm):
        engine.step()
    return norm


def _holds_half(engine: Any) -> bool:
    return bool(engine.bfloat16_enabled() or engine.fp16_enabled())


def _norm(engine: Any) -> Tensor:
    """Of whole gradients, which stage 0 holds in float32 and says no norm of."""
    gradients = [each.grad for each in engine.module.parameters() if each.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
