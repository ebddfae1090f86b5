"""A run under DeepSpeed: its settings, and how its engine steps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DeepSpeedSchedulerWrapper, DummyScheduler
from peft import PeftModel
from torch import Tensor
from transformers.integrations.deepspeed import (
    deepspeed_init,
    deepspeed_load_checkpoint,
    propagate_args_to_deepspeed,
)

from luthier import console
from luthier.arguments.record import Arguments
from luthier.arguments.resolve import resolve_warmup_steps
from luthier.distributed import fsdp_state
from luthier.distributed.deepspeed_config import (
    Config,
    complete,
    read_config,
    stage_of,
    value_of,
)
from luthier.distributed.strategy import (
    DEEPSPEED_STAGES,
    SCHEDULER,
    WORDS,
    Accepts,
    Learner,
    Strategy,
    StrategyName,
)
from luthier.errors import ArgumentsError
from luthier.modeling.sharded import has_shards
from luthier.processes.environment import distributed_environment

_stages: list[int] = []
"""Of the runs that this process has made."""


def deepspeed_settings(arguments: Arguments) -> Config | None:
    """What the library's arguments take as `deepspeed`; None where DeepSpeed takes no part.

    What was changed in the user's configuration is said. The numbers of the batch stand at
    `auto`, and the library puts in the user's. Without a launcher it is an ArgumentsError.
    """
    given = arguments.training.deepspeed
    if given is None:
        return None
    if not distributed_environment().is_launched:
        raise ArgumentsError(
            "deepspeed: its processes are started by a launcher, and this one was not. Use "
            "`luthier train --nproc N ...` (N may be 1), `deepspeed src/train.py ...` or "
            "torchrun."
        )
    config, lines = complete(read_config(given), arguments)
    stage = stage_of(config)
    if _stages:
        raise ArgumentsError(
            "deepspeed: this process has made a run with DeepSpeed before, whose groups live "
            "on in it. Start another process for another run."
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
    from deepspeed.git_version_info import installed_ops
    from torch.utils.cpp_extension import _get_build_directory, get_cxx_compiler

    folder = Path(_get_build_directory(name, verbose=False))
    if installed_ops.get(name) or any(folder.glob(f"{name}*.so")):
        return
    compiler = get_cxx_compiler()  # type: ignore[no-untyped-call]
    if shutil.which(compiler) is None:
        raise ArgumentsError(
            f"deepspeed: offload_optimizer needs {name}, which is compiled at the first start, "
            f"and there is no compiler ({compiler}). Install one, or take offload_optimizer "
            "out."
        )
    console.info(f"DeepSpeed compiles {name}, once; this takes a minute ({folder})")
    lock = folder / "lock"
    if lock.exists():
        console.warn(
            f"{lock} says that another process compiles it now. If there is none, remove that "
            "file: this run would wait for ever."
        )


class Zero(Strategy):
    """DeepSpeed's engine, made by accelerate, clips gradients and updates weights."""

    def __init__(self, name: StrategyName) -> None:
        super().__init__(name)
        self.shards_parameters = name == "zero3"

    def begin(self, learner: Learner) -> None:
        """Puts the model where its checks find it, before there is an engine."""
        args, accelerator = learner.args, learner.accelerator
        if getattr(args, "hf_deepspeed_config", None) is None:  # accelerate's launcher names it
            propagate_args_to_deepspeed(accelerator, args)
        allow_parts()
        # accelerate takes DeepSpeed's in any case, and warns
        config = accelerator.state.deepspeed_plugin.hf_ds_config.config
        accelerator.gradient_accumulation_steps = config["gradient_accumulation_steps"]
        if not has_shards(learner.model):
            learner.model.to(args.device)

    def prepare(self, learner: Learner, max_steps: int, checkpoint: str | None) -> None:
        """The engine reads all states of a checkpoint that holds its parts, else the weights."""
        if checkpoint is not None and not any(Path(checkpoint).glob("global_step*/*.pt")):
            fsdp_state.load_weights(learner.model, checkpoint)
            checkpoint = None
        # a schedule of DeepSpeed asks for it before ours is made
        training = learner.arguments.training
        learner.args.warmup_steps, _ = resolve_warmup_steps(training, max_steps)
        learner.optimizer, learner.lr_scheduler = deepspeed_init(learner, max_steps)
        learner.create_optimizer()
        prepare, model = learner.accelerator.prepare, learner.model
        if isinstance(learner.lr_scheduler, DummyScheduler):
            engine, learner.optimizer, learner.lr_scheduler = prepare(
                model, learner.optimizer, learner.lr_scheduler
            )
        else:
            engine, learner.optimizer = prepare(model, learner.optimizer)
        learner.create_scheduler(max_steps)
        learner.model_wrapped = engine
        if checkpoint is None:
            return
        is_strict = not isinstance(model, PeftModel)
        deepspeed_load_checkpoint(engine, checkpoint, load_module_strict=is_strict)
        if not isinstance(learner.lr_scheduler, DeepSpeedSchedulerWrapper):
            saved = torch.load(Path(checkpoint) / SCHEDULER, weights_only=True)
            learner.lr_scheduler.load_state_dict(saved)
        if engine.zero_optimization():  # it restores the bound of the run before
            engine.optimizer.clip_grad = engine.gradient_clipping()

    def backward(self, learner: Learner, loss: Tensor, *, is_last: bool) -> None:
        """DeepSpeed divides by nothing but the ranks.

        Stages 0 and 1 exchange gradients where the step's is complete; stages 2 and 3 hold parts of
        them and exchange each.
        """
        learner.model_wrapped.set_gradient_accumulation_boundary(is_boundary=is_last)
        learner.model_wrapped.backward(loss, scale_wrt_gas=False)

    def clip(self, learner: Learner, accepts: Accepts) -> Tensor | float | None:
        """Clips, updates the weights and clears the gradient; the optimizer's own step is idle.

        Stages 1 to 3 leave a step that is not finite out by themselves, so it is told afterwards.
        """
        engine = learner.model_wrapped
        is_half = engine.bfloat16_enabled() or engine.fp16_enabled()
        if engine.zero_optimization() or is_half:
            engine.step()
            told = engine.get_global_grad_norm()
            norm = None if told is None else float(told)
            if not accepts(norm):
                engine.optimizer.overflow = False  # the schedule would be held back
            return norm
        # whole gradients, which stage 0 holds in float32 and says no norm of
        gradients = [each.grad for each in engine.module.parameters() if each.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if accepts(norm):
            engine.step()
        return norm

    def evaluation_model(self, learner: Learner) -> Any:
        """Weights in parts are gathered by an engine, which evaluation without training makes."""
        if not learner.is_prepared and has_shards(learner.model):
            deepspeed_init(learner, num_training_steps=0, inference=True)
            learner.model_wrapped = learner.accelerator.prepare(learner.model)
            learner.is_prepared = True
        return learner.model

    def result_weights(self, learner: Learner) -> Mapping[str, Tensor] | None:
        """Gathered to the first rank; of an adapter in parts what learns only."""
        engine: Any = learner.model_wrapped
        if self.shards_parameters and isinstance(learner.model, PeftModel):
            weights: Mapping[str, Tensor] = engine._zero3_consolidated_16bit_state_dict(
                exclude_frozen_parameters=True
            )
            return weights
        weights = learner.accelerator.get_state_dict(engine)
        return weights

    def save_states(self, learner: Learner, folder: str) -> None:
        """The engine's parts, every rank its own, and a schedule that is not the engine's."""
        is_adapter = isinstance(learner.model, PeftModel)
        learner.model_wrapped.save_checkpoint(folder, exclude_frozen_parameters=is_adapter)
        is_own = not isinstance(learner.lr_scheduler, DeepSpeedSchedulerWrapper)
        if learner.args.should_save and is_own:
            torch.save(learner.lr_scheduler.state_dict(), Path(folder) / SCHEDULER)

    def load_weights(self, learner: Learner, folder: str | Path) -> None:
        """Into an engine, which is made first."""
        self.prepare(learner, learner.state.max_steps, str(folder))

    def load_best(self, learner: Learner, folder: str) -> None:
        """By the engine, which wrote it."""
        is_strict = not isinstance(learner.model, PeftModel)
        deepspeed_load_checkpoint(learner.model_wrapped, folder, load_module_strict=is_strict)


def allow_parts() -> None:
    """Lets DeepSpeed's parts of a checkpoint be read, which are pickled, wherever that is done.

    Only plain data is read in a run; what the parts need beside it are the classes named here.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    needed: list[Any] = [ZeroStageEnum, fragment_address, LossScaler, DynamicLossScaler]
    torch.serialization.add_safe_globals(needed)
