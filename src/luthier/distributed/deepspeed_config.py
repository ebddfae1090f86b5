"""DeepSpeed's configuration: read, held against the run's own arguments, and completed."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from luthier.arguments.files import read_settings
from luthier.arguments.record import Arguments, facts
from luthier.errors import ArgumentsError
from luthier.optional import is_installed, missing

Config: TypeAlias = dict[str, Any]

STAGES = (0, 1, 2, 3)

OF_THE_BATCH = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)
"""What one update is made of, in DeepSpeed's names."""

ADAM_LIKE = ("adamw_torch", "adamw_torch_fused", "adagrad")
"""Values of `optim` that DeepSpeed has in a form for the CPU."""


def read_config(given: str | Mapping[str, Any]) -> Config:
    """A copy of the configuration, or what stands in the JSON file of that name."""
    if isinstance(given, Mapping):
        return copy.deepcopy(dict(given))
    hint = "Name a JSON file such as examples/deepspeed/ds_z3_config.json"
    return read_settings("deepspeed", given, hint)


def stage_of(config: Mapping[str, Any]) -> Any:
    """The ZeRO stage as it is written; 0 where it is not."""
    return value_of(config, "zero_optimization.stage", 0)


def value_of(config: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a path such as `optimizer.params.lr`."""
    node: Any = config
    for name in path.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return default
        node = node[name]
    return node


def find_problems(arguments: Arguments) -> Iterator[str]:
    """What a configuration of DeepSpeed has against it, as far as nothing needs to be loaded."""
    training = arguments.training
    if training.deepspeed is None:
        return
    if not is_installed("deepspeed"):
        yield missing("deepspeed", "deepspeed")
    try:
        config = read_config(training.deepspeed)
    except ArgumentsError as problem:
        yield from problem.problems
        return
    stage = stage_of(config)
    if isinstance(stage, bool) or stage not in STAGES:
        yield (
            f"deepspeed: zero_optimization.stage is {stage!r}; expected 0, 1, 2 or 3 (what ZeRO "
            "holds in parts: nothing, optimizer states, gradients too, weights too)."
        )
        return
    yield from _contradictions(config, arguments)
    yield from _not_here(config, arguments)
    if stage == 3:
        yield from _not_with_weights_in_parts(arguments)


def complete(config: Config, arguments: Arguments) -> tuple[Config, list[str]]:
    """The configuration that DeepSpeed is given, and a line for each thing that was changed.

    What the run's arguments say and the configuration leaves out is filled in as if it said
    `auto`, so that no argument is without effect. Half precision was taken before from where the
    device has none.
    """
    config, lines = copy.deepcopy(config), []
    training = arguments.training
    zero = config.setdefault("zero_optimization", {})
    zero.setdefault("stage", 0)
    config.setdefault("gradient_clipping", "auto")
    for name in OF_THE_BATCH:
        config[name] = "auto"
    for name in ("bf16", "fp16"):
        section = config.setdefault(name, {})
        if section.setdefault("enabled", "auto") is True and not getattr(training, name):
            section["enabled"] = False
            lines.append(f"deepspeed: {name}.enabled = false (the run computes in float32)")
    # a step whose gradient is not finite is left out in bfloat16 as well
    config["bf16"].setdefault("check_grad_overflow", True)
    gathers = "stage3_gather_16bit_weights_on_model_save"
    if stage_of(config) == 3 and zero.get(gathers) is not True:
        zero[gathers] = True
        lines.append(f"deepspeed: {gathers} = true (the result is written whole)")
    offload = value_of(config, "zero_optimization.offload_optimizer.device", "none")
    is_forced = config.get("zero_force_ds_cpu_optimizer", True)
    if offload != "none" and is_forced and "optimizer" not in config:
        if training.optim in ADAM_LIKE:
            lines.append(f"deepspeed: {training.optim} is computed on the CPU in DeepSpeed's form")
        else:
            config["zero_force_ds_cpu_optimizer"] = False
            lines.append(
                "deepspeed: zero_force_ds_cpu_optimizer = false (DeepSpeed would put its Adam in "
                f"the place of {training.optim})"
            )
    for name, idle in (("optimizer", "optim"), ("scheduler", "lr_scheduler_type")):
        if name in config:
            kind = value_of(config, f"{name}.type")
            lines.append(f"deepspeed: {name} {kind} by its configuration; {idle} has no effect")
    return config, lines


def _contradictions(config: Config, arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    per_device, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    values = arguments.flat()
    pairs: list[tuple[str, str, Any]] = [
        (path, name, values[name])
        for name, known in facts().items()
        for path in known.in_deepspeed.split()
    ]
    betas = [training.adam_beta1, training.adam_beta2]
    pairs.append(("optimizer.params.betas", "adam_beta1, adam_beta2", betas))
    ranks = os.environ.get("WORLD_SIZE", "")
    if ranks.isdecimal():
        product = per_device * steps * int(ranks)
        said = "per_device_train_batch_size x gradient_accumulation_steps x processes"
        pairs.append(("train_batch_size", said, product))
    for path, name, value in pairs:
        written = value_of(config, path, "auto")
        if written not in ("auto", None, value):
            yield (
                f"deepspeed: {path} is {json.dumps(written)}, and {name} is {json.dumps(value)}. "
                f'Write "auto" there, or make the two agree.'
            )


def _not_here(config: Config, arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    tensor_ranks = value_of(config, "tensor_parallel.autotp_size", 1)
    if tensor_ranks not in (0, 1, None):
        yield (
            f"deepspeed: tensor_parallel.autotp_size is {tensor_ranks}; layers split over devices "
            "are not in this version. Leave tensor_parallel out; ZeRO stage 3 also holds a weight "
            "in parts."
        )
    if arguments.model.upcast_layernorm:
        yield "upcast_layernorm: DeepSpeed holds all weights in one dtype; leave it out."
    if training.bf16_full_eval or training.fp16_full_eval:
        name = "bf16_full_eval" if training.bf16_full_eval else "fp16_full_eval"
        yield f"{name}: DeepSpeed casts the weights itself; use {name[:4]} instead."
    if "optimizer" in config and arguments.finetuning.loraplus_lr_ratio is not None:
        yield (
            "deepspeed: its configuration brings an optimizer, which knows no loraplus_lr_ratio. "
            "Take the section optimizer out."
        )
    if training.save_only_model and training.load_best_model_at_end:
        yield (
            "save_only_model: with deepspeed, load_best_model_at_end needs whole checkpoints; "
            "leave one of the two out."
        )
    if training.torch_compile or training.torch_compile_backend or training.torch_compile_mode:
        yield "torch_compile: it does not go with deepspeed here; leave it out."


def _not_with_weights_in_parts(arguments: Arguments) -> Iterator[str]:
    training, finetuning = arguments.training, arguments.finetuning
    told = "with weights in parts (DeepSpeed ZeRO stage 3)"
    for name in arguments.generating_names():
        then = "Leave deepspeed out"
        if training.do_train:
            then = "Predict afterwards, in a run without do_train and deepspeed"
        yield f"{name}: no answers are generated {told}. {then}, or use stage 2."
    if finetuning.pissa_init:
        yield f"pissa_init: whole weights are taken apart, which cannot be {told}. Use stage 2."
    if finetuning.pure_bf16:
        yield f"pure_bf16: it cannot be {told}, which keeps float32 copies. Use bf16: true."
