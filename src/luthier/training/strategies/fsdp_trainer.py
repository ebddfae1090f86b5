"""The library's trainer under FSDP2: results written whole, checkpoints read as they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer

from luthier import console
from luthier.training.strategies import fsdp


class FsdpTrainer(Trainer):
    """What transformers' trainer does otherwise when weights are held in parts.

    It writes no result with `SHARDED_STATE_DICT`, a second copy of the weights without, and reads
    only what was written in the way that this run would write.
    """

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate's state, with FSDP on a CPU, too."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            fsdp.take_up(self.accelerator, self.args)
            self.is_fsdp_enabled = True

    def place_model(self) -> None:
        """Brings a model that will be held in parts to its device, to be looked at while whole."""
        if self.is_fsdp_enabled:
            fsdp.place(self.model, self.accelerator)

    def _prepare_for_training(self, *args: Any, **options: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **options)
        if self.is_fsdp_enabled:
            console.info(f"fsdp: {fsdp.describe(self.model)}")
        return prepared

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the result whole; in a checkpoint of weights in parts only what goes with them."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        folder = str(self.args.output_dir if output_dir is None else output_dir)
        is_in_parts = _internal_call and fsdp.holds_parts(self.accelerator)
        if is_in_parts and not isinstance(self.model, PeftModel):
            if self.args.should_save:
                self.model.config.save_pretrained(folder)
                self.processing_class.save_pretrained(folder)
        else:
            self._save(folder, state_dict=fsdp.whole_weights(self.model))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        fsdp.save_state(self.accelerator, self.model, self.optimizer, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        fsdp.load_weights(self.accelerator, self.model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with fsdp.as_saved(self.accelerator, checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        if not self.is_fsdp_enabled:
            super()._load_best_model()
            return
        best = self.state.best_model_checkpoint
        assert best is not None
        fsdp.load_weights(self.accelerator, self.model, best)
