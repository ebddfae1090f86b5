"""`full`: every weight learns."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from luthier.arguments.record import Arguments
from luthier.modeling.adapters.registry import ADAPTERS


@ADAPTERS.register("full")
def prepare(model: PreTrainedModel, arguments: Arguments, *, is_trainable: bool) -> Any:
    """Marks all parameters as learning."""
    model.requires_grad_(is_trainable)
    return model
