"""The one answer to how the weights of a run are held."""

from __future__ import annotations

import os

from accelerate.utils import str_to_bool
from transformers import TrainingArguments as LibraryArguments

from luthier.distributed.strategy import DEEPSPEED_STAGES, Strategy


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
