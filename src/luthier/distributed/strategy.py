"""Where weights, gradients and optimizer states lie: whole on every rank, or in parts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

from accelerate.utils import str_to_bool
from transformers import TrainingArguments as LibraryArguments

from luthier.arguments.record import Arguments

StrategyName: TypeAlias = Literal["single", "ddp", "zero0", "zero1", "zero2", "zero3", "fsdp2"]

DEEPSPEED_STAGES: tuple[StrategyName, ...] = ("zero0", "zero1", "zero2", "zero3")
"""The name of each stage."""

WORDS: dict[StrategyName, str] = {
    "single": "one process",
    "ddp": "every rank holds all (DDP)",
    "zero0": "DeepSpeed, every rank holds all (ZeRO stage 0)",
    "zero1": "DeepSpeed, optimizer states in parts (ZeRO stage 1)",
    "zero2": "DeepSpeed, optimizer states and gradients in parts (ZeRO stage 2)",
    "zero3": "DeepSpeed, optimizer states, gradients and weights in parts (ZeRO stage 3)",
    "fsdp2": "FSDP2: optimizer states, gradients and weights in parts",
}


@dataclass(frozen=True)
class Strategy:
    """How a run's processes hold what it trains.

    Attributes:
        name: see `WORDS`.
        shards_parameters: whether a weight is whole only while its own module's forward or backward
            runs. What reads `.weight` from outside has to gather it, or leave it alone.
    """

    name: StrategyName

    @property
    def shards_parameters(self) -> bool:
        """See the class."""
        return self.name in ("zero3", "fsdp2")

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed's engine clips gradients and steps the optimizer."""
        return self.name.startswith("zero")

    def __str__(self) -> str:
        return WORDS[self.name]


def find_strategy(arguments: Arguments, library_arguments: LibraryArguments) -> Strategy:
    """The one answer to how weights are held.

    Args:
        arguments: of the run.
        library_arguments: of the same run; the process group exists by then.
    """
    plugin = library_arguments.deepspeed_plugin
    if plugin is not None:
        return Strategy(DEEPSPEED_STAGES[int(plugin.zero_stage)])
    if library_arguments.fsdp or str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        return Strategy("fsdp2")
    return Strategy("ddp" if library_arguments.world_size > 1 else "single")
