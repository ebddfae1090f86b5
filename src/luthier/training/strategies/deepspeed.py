"""A run under DeepSpeed: its settings, its backward passes, its steps."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments as LibraryArguments

from luthier import console
from luthier.arguments.record import Arguments
from luthier.errors import ArgumentsError
from luthier.training.launched import launched_world
from luthier.training.strategies.deepspeed_config import Config, complete, read_config


def deepspeed_settings(arguments: Arguments) -> Config | None:
    """What the library's arguments take as `deepspeed`; None where DeepSpeed takes no part.

    What was changed in the user's configuration is said. The numbers of the batch stand at
    `auto`: `state_batch` puts them in.

    Raises:
        ArgumentsError: when the process was not started by a launcher.
    """
    given = arguments.training.deepspeed
    if given is None:
        return None
    if not launched_world().is_launched:
        raise ArgumentsError(
            [
                "deepspeed: its processes are started by a launcher, and this one was not. Use "
                "`luthier train --nproc N ...` (N may be 1), `deepspeed src/train.py ...` or "
                "torchrun."
            ]
        )
    config, lines = complete(read_config(given), arguments)
    for line in lines:
        console.info(line)
    return config


def state_batch(library_arguments: LibraryArguments, arguments: Arguments) -> None:
    """Tells DeepSpeed the batch in the user's numbers, whose product is one update.

    transformers has filled in that a step is one batch, since it sees ours as one.
    """
    training = arguments.training
    per_device, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    library_arguments.hf_deepspeed_config.config |= {
        "train_micro_batch_size_per_gpu": per_device,
        "gradient_accumulation_steps": steps,
        "train_batch_size": per_device * steps * library_arguments.world_size,
    }


def use_gloo() -> None:
    """Keeps DeepSpeed on a CPU from its own collectives; called before its group is made.

    They are compiled at the first start (a minute), and they have no time limit: ranks whose peer
    has died would wait for ever. Without them gloo is used, as in all other runs on a CPU.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would look for another, and warn of none
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


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


def step(engine: Any) -> float | None:
    """Clips the gradient, updates the weights and clears the gradient.

    Returns:
        The gradient's norm before it was clipped, of all ranks together.
    """
    own = None if engine.zero_optimization() or _holds_half(engine) else _norm(engine)
    engine.step()
    norm = engine.get_global_grad_norm() if own is None else own
    return None if norm is None else float(norm)


def _holds_half(engine: Any) -> bool:
    return bool(engine.bfloat16_enabled() or engine.fp16_enabled())


def _norm(engine: Any) -> Tensor:
    """Of whole gradients, which stage 0 holds in float32 and says no norm of."""
    gradients = [each.grad for each in engine.module.parameters() if each.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
