"""What goes to the hub: whole checkpoints and the model at the end, no pickles, no states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from luthier.checkpoints.subject import Subject

OF_TRAINING = ["*.pt", "*.pth", "*.bin", "*.distcp", "global_step*", "latest", "trainer_state.json"]
"""Files of a checkpoint that nobody needs who uses the model."""

KEPT_HERE = ["_*", ".*", "checkpoint-*"]
"""What stays on this machine of a run's folder."""


def push_checkpoint(trainer: Subject, checkpoint: Path) -> None:
    """Uploads a published checkpoint as `hub_strategy` says, while training goes on.

    Args:
        trainer: whose run it is; only the first rank uploads.
        checkpoint: its folder, read while it is uploaded.
    """
    args, running = trainer.args, trainer.push_in_progress
    if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
        return
    if running is not None and not running.is_done() and not args.hub_always_push:
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    message = f"Training in progress, step {trainer.state.global_step}"
    options: dict[str, Any] = {
        "repo_id": trainer.hub_model_id,
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
        trainer.push_in_progress = PushInProgress(jobs)
    else:
        running.jobs.extend(jobs)


def push_model(trainer: Subject, message: str) -> None:
    """Uploads the model at the end of a run, and what tells of it; waits until it is there.

    Args:
        trainer: whose run it is; only the first rank uploads.
        message: of the commit.
    """
    if not trainer.is_world_process_zero():
        return
    trainer._finish_current_push()
    HfApi().upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=trainer.args.output_dir,
        commit_message=message,
        token=trainer.args.hub_token,
        revision=trainer.args.hub_revision,
        ignore_patterns=KEPT_HERE,
    )
