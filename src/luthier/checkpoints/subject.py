"""What a trainer is to those who write its checkpoints."""

from __future__ import annotations

from typing import Any, Protocol

from luthier.arguments.record import Arguments


class Subject(Protocol):
    """A trainer of the library with our arguments; the names are the library's."""

    arguments: Arguments
    args: Any
    state: Any
    control: Any
    model: Any
    model_wrapped: Any
    optimizer: Any
    processing_class: Any
    callback_handler: Any
    push_in_progress: Any
    hub_model_id: str
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model to a folder."""

    def save_model_of_checkpoint(self, output_dir: str) -> None:
        """Writes the model, or the part of it that a checkpoint has in this form."""

    def store_flos(self) -> None:
        """Adds up what ranks have computed."""

    def is_world_process_zero(self) -> bool:
        """Whether this is the first rank."""

    def get_train_dataloader(self) -> Any:
        """The steps of an epoch."""

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Epochs, steps and examples of the run; its last value is the number of steps."""

    def _prepare_for_training(self, max_steps: int, dataloader: Any, checkpoint: Any) -> Any: ...

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None: ...

    def _save_optimizer_and_scheduler(self, folder: str) -> None: ...

    def _save_scaler(self, folder: str) -> None: ...

    def _save_rng_state(self, folder: str) -> None: ...

    def _finish_current_push(self) -> None: ...
