"""`full`: every weight learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.arguments.choices import ADAPTERS, Adapter
from luthier.arguments.record import Arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(
    model: PreTrainedModel,
    arguments: Arguments,
    *,
    is_trainable: bool,
    checkpoint: Path | None = None,
) -> Any:
    """Marks all parameters as learning; in a model that also sees or hears, those of text."""
    from luthier.modeling.adapters.targets import text_part

    part = text_part(model) if is_trainable else None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trainable and (part is None or bool(part.fullmatch(name))))
    return model


ADAPTERS.register("full")(Adapter(prepare, trains_all=True))
