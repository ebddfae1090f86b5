"""The library's trainer under FSDP2: results written whole, checkpoints read as they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer

from luthier import console
from luthier.arguments.record import Arguments
from luthier.distributed import fsdp, fsdp_state

WHOLE_GRADIENT = 1 << 30
"""Bytes of a gradient in float32 up to which every rank adds up a whole one of its step."""

SCHEDULER = "scheduler.pt"
"""The file of a checkpoint in which transformers keeps the learning rate's schedule."""


class FsdpTrainer(Trainer):
    """What transformers' trainer does otherwise when weights are held in parts.

    It writes no result with `SHARDED_STATE_DICT`, a second copy of the weights without, and reads
    only what was written in the way that this run would write. This one also reads what a run with
    FSDP has written into a run without, and experts, which transformers 5.23 stores in another form
    than it trains them in and leaves out when it goes on from a checkpoint.

    Attributes:
        exchanges_every_gradient: whether ranks exchange the gradient of every micro-batch, not of
            a step: more to send, and nobody holds a whole gradient.
    """

    exchanges_every_gradient = False

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate's state, with FSDP on a CPU, too."""
        super().create_accelerator_and_postprocess()
        asked = self.accelerator.gradient_state.plugin_kwargs
        self.exchanges_every_gradient = bool(asked.get("sync_each_batch"))
        if self.args.fsdp:
            fsdp.take_up(self.accelerator, self.args)
            self.is_fsdp_enabled = True

    def place_model(self, arguments: Arguments) -> Arguments:
        """Brings a model that will be held in parts to its device, to be looked at while whole.

        Returns:
            The arguments, with gradient checkpointing where the model does not fit there whole.
        """
        if self.is_fsdp_enabled:
            return fsdp.place(self.model, self.accelerator, arguments)
        return arguments

    def _prepare_for_training(self, *args: Any, **options: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **options)
        if self.is_fsdp_enabled:
            console.info(f"fsdp: {fsdp.describe(self.model)}")
            size = fsdp.bytes_of_whole_gradient(self.model)
            if size > WHOLE_GRADIENT:
                self.exchanges_every_gradient = True
                console.info(
                    "fsdp: gradients are exchanged with every micro-batch (until the end of a step "
                    f"they would take {console.gibibytes(size)})"
                )
        return prepared

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model whole, from whatever parts it lies in."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        folder = str(self.args.output_dir if output_dir is None else output_dir)
        self._save(folder, state_dict=fsdp_state.whole_weights(self.model))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def save_model_of_checkpoint(self, folder: str) -> None:
        """Writes the model whole, or in parts where checkpoints are to hold those.

        An adapter is small and always whole.
        """
        is_whole = not self.is_fsdp_enabled or isinstance(self.model, PeftModel)
        if is_whole or not fsdp.holds_parts(self.accelerator):
            self.save_model(folder, _internal_call=True)
            return
        fsdp_state.save_weights(self.model, folder)
        if self.args.should_save:
            self.model.config.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        in_parts = fsdp.holds_parts(self.accelerator)
        fsdp_state.save_optimizer(self.model, self.optimizer, output_dir, in_parts=in_parts)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        fsdp_state.load_weights(self.model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (self.is_fsdp_enabled or fsdp_state.is_of_fsdp(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        file = Path(checkpoint) / SCHEDULER
        if file.is_file():  # written beside every optimizer
            fsdp_state.load_optimizer(self.model, self.optimizer, checkpoint)
            self.lr_scheduler.load_state_dict(torch.load(file, weights_only=True))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        assert self.state.best_model_checkpoint is not None
        fsdp_state.load_weights(self.model, self.state.best_model_checkpoint)
