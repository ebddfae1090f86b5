"""`full`: every weight learns."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from luthier.arguments.record import Arguments
from luthier.modeling.adapters.registry import ADAPTERS
from luthier.modeling.adapters.targets import text_part


@ADAPTERS.register("full")
def prepare(model: PreTrainedModel, arguments: Arguments, *, is_trainable: bool) -> Any:
    """Marks all parameters as learning; in a model that also sees or hears, those of text."""
    part = text_part(model) if is_trainable else None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trainable and (part is None or bool(part.fullmatch(name))))
    return model
