"""How large a model is, and how much of it learns."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from luthier import console
from luthier.modeling.sharded import full_numel, full_shape

LAYER_COUNT_NAMES = ("num_hidden_layers", "num_layers", "n_layer")


def count_layers(config: PreTrainedConfig) -> int | None:
    """The number of layers by the configuration's own word for it; None when it has none."""
    known = config.get_text_config().to_dict()
    return next((known[name] for name in LAYER_COUNT_NAMES if known.get(name)), None)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters learn, and how many there are.

    Shared ones count once. Those that are sharded away count by their full size, those packed
    into 4 bits by what they stand for.
    """
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter_size(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def say_counts(model: nn.Module, *, is_trainable: bool, with_each: bool = False) -> None:
    """Prints the counts, and on request every parameter (`print_param_status`)."""
    trainable, total = count_parameters(model)
    if is_trainable:
        share = 100 * trainable / max(total, 1)
        console.info(f"trainable params: {trainable:,} of {total:,} ({share:.2f} %)")
    else:
        console.info(f"params: {total:,}")
    if with_each:
        for name, parameter in model.named_parameters():
            shape, dtype = tuple(full_shape(parameter)), str(parameter.dtype)[len("torch.") :]
            console.info(
                f"{name}: {shape}, {dtype}, {parameter.device}, "
                f"{'trained' if parameter.requires_grad else 'frozen'}"
            )


def parameter_size(parameter: Any) -> int:
    """How many numbers a parameter stands for, sharded or packed as it may be."""
    if type(parameter).__name__ == "Params4bit":
        return int(parameter.numel()) * 2 * int(parameter.element_size())
    return full_numel(parameter)
