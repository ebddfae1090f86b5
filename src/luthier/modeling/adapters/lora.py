"""`lora`: low-rank updates beside the frozen weights, in peft's form (Hu et al. 2021)."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.arguments.choices import ADAPTERS, Adapter
from luthier.arguments.record import Arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONVERTED_FOLDER = "pissa_converted"


def prepare(
    model: PreTrainedModel,
    arguments: Arguments,
    *,
    is_trainable: bool,
    checkpoint: Path | None = None,
) -> Any:
    """Merges, resumes or makes adapters, see `beside.py` and `low_rank.py`."""
    from luthier.modeling.adapters.beside import prepare_adapters
    from luthier.modeling.adapters.low_rank import create_lora

    create = partial(create_lora, checkpoint=checkpoint)
    return prepare_adapters(model, arguments, create, is_trainable=is_trainable)


def finish(model: Any, arguments: Arguments, folder: Path) -> None:
    """Reads what was written back, and copies it to where `pissa_convert` has it.

    The adapter of a PiSSA run is a plain LoRA as it is.
    """
    from luthier.modeling.adapters.file import CONFIG, FILE, read_back

    read_back(model, folder)
    if arguments.finetuning.pissa_convert:
        converted = folder / CONVERTED_FOLDER
        converted.mkdir(exist_ok=True)
        for name in (FILE, CONFIG):
            shutil.copyfile(folder / name, converted / name)
        console.info(f"as plain LoRA: {converted}")


ADAPTERS.register("lora")(Adapter(prepare, finish, needs="peft", keeps_apart=True))
