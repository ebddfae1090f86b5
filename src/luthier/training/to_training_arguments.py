"""Our arguments -> `transformers.TrainingArguments`, the one place where names are translated."""

from __future__ import annotations

import copy
import dataclasses
import os
from typing import Any

from pydantic import SecretStr
from transformers import TrainingArguments as LibraryArguments

from luthier import console
from luthier.arguments.choices import OPTIMIZERS
from luthier.arguments.record import Arguments, facts
from luthier.distributed.deepspeed import deepspeed_settings
from luthier.distributed.fsdp import fsdp_settings
from luthier.errors import ArgumentsError
from luthier.processes.environment import has_accelerator, is_on_cpu


def to_training_arguments(arguments: Arguments) -> LibraryArguments:
    """The library's arguments of this run, or an ArgumentsError with its own sentence."""
    known = {field.name for field in dataclasses.fields(LibraryArguments)}
    values = {
        name: _plain(value)
        for name, value in arguments.training
        if value is not None and name in known and not facts()[name].is_ours
    }
    values |= arguments.passed_through
    if OPTIMIZERS.get(arguments.training.optim).make is not None:
        del values["optim"]  # the library knows no such name, and makes none
    if arguments.finetuning.disable_shuffling:
        values["train_sampling_strategy"] = "sequential"
    values["use_cpu"] = is_on_cpu(arguments)
    if values["use_cpu"] and not arguments.training.use_cpu:
        reason = "as accelerate's launcher says" if has_accelerator() else "no accelerator found"
        console.info(f"use_cpu = True ({reason})")
    if values["use_cpu"]:  # where DeepSpeed is installed it is imported, and warns of no other
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # beside use_cpu it only makes accelerate put DeepSpeed's settings aside without a word
    os.environ.pop("ACCELERATE_USE_CPU", None)
    # transformers would compute in it where neither bf16 nor fp16 is set
    told = os.environ.pop("ACCELERATE_MIXED_PRECISION", "no")
    own = arguments.training.precision
    if told not in ("no", own):
        console.info(f"accelerate's mixed_precision: {told} is put aside; set {told}: true here")
    # our losses reach every trained weight; where the layout's probe finds another, it says so
    values.setdefault("ddp_find_unused_parameters", False)
    values["disable_tqdm"] = True
    values["remove_unused_columns"] = False
    values["logging_nan_inf_filter"] = False  # a loss that is no number would be logged as another
    values["deepspeed"] = deepspeed_settings(arguments)
    values |= fsdp_settings(arguments, on_cpu=values["use_cpu"])
    try:
        library = LibraryArguments(**values)
    except (ValueError, TypeError, ImportError) as problem:
        raise ArgumentsError([str(problem)]) from problem
    if library.n_gpu > 1:
        console.info(
            f"{library.n_gpu} accelerators are here and this process uses one of them; `luthier "
            "train` starts a process for each."
        )
        library._n_gpu = 1  # transformers would copy the model to all of them at every step
    return library


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    # the library writes into mappings, and the user's may be that of another run as well
    return list(value) if isinstance(value, tuple) else copy.deepcopy(value)
