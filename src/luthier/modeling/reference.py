"""The model as it was when the run began, which a loss holds the trained one against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from peft import PeftModel
from torch import Tensor, nn


class Reference:
    """Gives a model its first weights back for as long as it is read.

    Beside an adapter nothing is held: it is left out. Otherwise a copy of what learns is, and is
    put in the place of the trained tensors.

    Args:
        model: before it learns, and before it is wrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._copies: dict[int, Tensor] = {}
        if not isinstance(model, PeftModel):
            self._copies = {
                id(each): each.detach().clone() for each in model.parameters() if each.requires_grad
            }

    @contextmanager
    def reading(self, model: Any) -> Iterator[Any]:
        """The model as it was at first, in evaluation mode."""
        was_training = model.training
        left_out = model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
        places = [
            (module._parameters, name, tensor)
            for module in (model.modules() if self._copies else ())
            for name, tensor in module._parameters.items()
            if id(tensor) in self._copies
        ]
        try:
            model.eval()
            for table, name, tensor in places:
                table[name] = self._copies[id(tensor)]
            with left_out:
                yield model
        finally:
            for table, name, tensor in places:
                table[name] = tensor
            model.train(was_training)
