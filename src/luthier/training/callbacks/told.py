"""The library's loop has values of its own; callbacks and trackers are told the user's."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments
from transformers.trainer_callback import CallbackHandler

OF_THE_LOOP: dict[str, Any] = {
    "gradient_accumulation_steps": 1,  # a step is one batch to the library
    "gradient_checkpointing": False,  # it is switched on while the model is loaded
    "activation_checkpointing": False,  # the same by its new name
    "save_total_limit": None,  # checkpoints are published, verified and deleted in checkpoints/
}
"""What `TrainingArguments` say between events."""


class ToldHandler(CallbackHandler):
    """Calls callbacks with the user's values in the arguments, and puts the loop's back.

    Args:
        handler: the library's, whose callbacks are taken over.
        args: from here on they say what the loop is to read.

    Attributes:
        told: name -> the user's value.
    """

    def __init__(self, handler: CallbackHandler, args: TrainingArguments) -> None:
        super().__init__(
            handler.callbacks,
            handler.model,
            handler.processing_class,
            handler.optimizer,
            handler.lr_scheduler,
        )
        self.told = {name: getattr(args, name) for name in OF_THE_LOOP}
        _set(args, OF_THE_LOOP)

    def call_event(
        self, event: str, args: TrainingArguments, state: Any, control: Any, **others: Any
    ) -> Any:
        """One event of all callbacks."""
        _set(args, self.told)
        try:
            return super().call_event(event, args, state, control, **others)
        finally:
            _set(args, OF_THE_LOOP)


def _set(args: TrainingArguments, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(args, name, value)
