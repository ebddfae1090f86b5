"""The methods by name: `finetuning_type` -> the function that marks what learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from luthier.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.arguments.record import Arguments


class Prepare(Protocol):
    """Gives a model whose parameters have `requires_grad` exactly where they learn."""

    def __call__(self, model: PreTrainedModel, arguments: Arguments, *, is_trainable: bool) -> Any:
        """Changes the model in place; returns it, or the peft model around it.

        Raises:
            ModelError: when the arguments do not fit this model.
        """


ADAPTERS: Registry[Prepare] = Registry("finetuning_type", "luthier.modeling.adapters")
