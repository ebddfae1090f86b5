"""An adapter's weights by their names in the model <-> in its file."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch.distributed.fsdp import FSDPModule

from luthier import console
from luthier.errors import ModelError
from luthier.modeling.adapters.tied import TRANSPOSED

FILE = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CONVERTED_FOLDER = "pissa_converted"


def names_in_file(model: Any) -> dict[str, str]:
    """The names of a peft model's own weights in a file -> those in the model."""
    # it looks at names only
    saved: dict[str, str] = get_peft_model_state_dict(
        model,
        state_dict={name: name for name in model.state_dict()},
        save_embedding_layers=False,
    )
    return {key: name for key, name in saved.items() if not name.endswith(f".{TRANSPOSED}")}


def read_back(model: PeftModel, folder: Path) -> None:
    """Loads an adapter as plain peft does, on a model of the same kind that takes no memory.

    Args:
        model: that was written there.
        folder: of the adapter.

    Raises:
        ModelError: when peft cannot load it, or misses a weight.
    """
    base: Any = model.get_base_model()
    kind = type(base).__bases__[1] if isinstance(base, FSDPModule) else type(base)
    try:
        with torch.device("meta"):
            twin = kind(copy.deepcopy(base.config))
    except (NotImplementedError, RuntimeError, TypeError) as problem:
        console.info(f"{folder} was not read back: {kind.__name__} needs its weights ({problem})")
        return
    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            PeftModel.from_pretrained(twin, folder, low_cpu_mem_usage=True)
    except (KeyError, RuntimeError, UserWarning, ValueError) as problem:
        raise ModelError(
            f"{folder}: the adapter that was written cannot be loaded: {problem}. The trained "
            f"weights are in its {FILE} and in the last checkpoint."
        ) from problem


def copy_converted(output_dir: Path) -> Path:
    """Puts a run's adapter where `pissa_convert` has it; it is a plain LoRA as it is.

    Args:
        output_dir: of the run, with its adapter.

    Returns:
        The folder `pissa_converted` inside it.
    """
    folder = output_dir / CONVERTED_FOLDER
    folder.mkdir(exist_ok=True)
    for name in (FILE, CONFIG):
        shutil.copyfile(output_dir / name, folder / name)
    return folder
