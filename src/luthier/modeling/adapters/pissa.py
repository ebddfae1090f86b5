"""A trained PiSSA adapter -> a plain LoRA of the unchanged base model."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from luthier.errors import ModelError
from luthier.modeling.ranks import rank

INITIAL_FOLDER = "pissa_initial"
CONVERTED_FOLDER = "pissa_converted"


def save_pissa_start(model: PeftModel, output_dir: str | Path) -> Path:
    """Writes the adapter as it is before the first step, which the conversion needs; rank 0 does.

    Args:
        model: right after PiSSA's start (`pissa_init`).
        output_dir: of the run; the adapter goes to `pissa_initial` inside it.
    """
    folder = Path(output_dir) / INITIAL_FOLDER
    if rank() != 0:
        return folder
    config = model.peft_config["default"]
    start, config.init_lora_weights = config.init_lora_weights, True
    try:
        model.save_pretrained(folder)
    finally:
        config.init_lora_weights = start
    return folder


def convert_pissa(model: PeftModel, output_dir: str | Path) -> Path:
    """Writes the trained adapter as a plain LoRA of twice the rank (`pissa_convert`); rank 0 does.

    PiSSA takes the base weights apart, W = (W - s A0 B0) + s A0 B0, and trains the second part.
    W + s (A B - A0 B0) is the same model, a LoRA of rank 2r on the unchanged W, which needs no
    decomposition when it is loaded.

    Args:
        model: after training.
        output_dir: of the run, where `save_pissa_start` has written.

    Returns:
        The folder `pissa_converted` inside it.

    Raises:
        ModelError: when the start of the adapter was not kept.
    """
    initial, folder = Path(output_dir) / INITIAL_FOLDER, Path(output_dir) / CONVERTED_FOLDER
    if rank() != 0:
        return folder
    if not (initial / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"pissa_convert: {initial} is missing, which holds the adapter before the first step. "
            "It is written when a run starts with pissa_init and pissa_convert."
        )
    config = model.peft_config["default"]
    start, config.init_lora_weights = config.init_lora_weights, "pissa"
    try:
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(initial))
    finally:
        config.init_lora_weights = start
    return folder
