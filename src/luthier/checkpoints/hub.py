"""What goes to the hub: whole checkpoints and the model at the end, no pickles, no states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from luthier.distributed.strategy import Learner

OF_TRAINING = ["*.pt", "*.pth", "*.bin", "*.distcp", "global_step*", "latest", "trainer_state.json"]
"""Files of a checkpoint that nobody needs who uses the model."""

KEPT_HERE = ["_*", ".*", "checkpoint-*"]
"""What stays on this machine of a run's folder."""


class Hub:
    """Uploads what a run of a trainer writes, by its first rank, to the repository made now."""

    def __init__(self, trainer: Learner) -> None:
        self._trainer = trainer
        self._running: PushInProgress | None = None
        args = trainer.args
        if args.push_to_hub and trainer.is_world_process_zero():
            name = args.hub_model_id or Path(args.output_dir).absolute().name
            self._repository: str = (
                HfApi()
                .create_repo(
                    name, token=args.hub_token, private=args.hub_private_repo, exist_ok=True
                )
                .repo_id
            )

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Uploads a published checkpoint as `hub_strategy` says, while training goes on."""
        trainer, args, running = self._trainer, self._trainer.args, self._running
        if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if running is not None and not running.is_done() and not args.hub_always_push:
            return
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        message = f"Training in progress, step {trainer.state.global_step}"
        options: dict[str, Any] = {
            "repo_id": self._repository,
            "folder_path": checkpoint,
            "token": args.hub_token,
            "revision": args.hub_revision,
            "run_as_future": True,
        }
        api = HfApi()
        jobs = [api.upload_folder(**options, commit_message=message, ignore_patterns=OF_TRAINING)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = args.hub_strategy == HubStrategy.CHECKPOINT
            place = "last-checkpoint" if is_last else checkpoint.name
            jobs.append(
                api.upload_folder(
                    **options, commit_message=f"{message}, checkpoint", path_in_repo=place
                )
            )
        if running is None or running.is_done():
            self._running = PushInProgress(jobs)
        else:
            running.jobs.extend(jobs)

    def push_model(self, message: str) -> None:
        """Uploads the model at the end of a run, and what tells of it; waits until it is there."""
        if not self._trainer.is_world_process_zero():
            return
        self.finish()
        args = self._trainer.args
        HfApi().upload_folder(
            repo_id=self._repository,
            folder_path=args.output_dir,
            commit_message=message,
            token=args.hub_token,
            revision=args.hub_revision,
            ignore_patterns=KEPT_HERE,
        )

    def finish(self) -> None:
        """Waits for the uploads that are going on."""
        if self._running is not None and not self._running.is_done():
            self._running.wait_until_done()
