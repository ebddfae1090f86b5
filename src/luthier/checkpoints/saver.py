"""Writes the checkpoints of a run, and goes on when one of them cannot be written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerState
from transformers.trainer_callback import ExportableState

from luthier import console
from luthier.checkpoints.files import (
    FINAL,
    checkpoint_folder,
    files_below,
    size_of,
    stage_folder,
    write_whole,
)
from luthier.checkpoints.hub import Hub
from luthier.checkpoints.manifest import Manifest
from luthier.checkpoints.pretrained import PretrainedFiles
from luthier.checkpoints.publish import (
    BESIDE_TENSORS,
    MARGIN,
    OF_A_TOKEN,
    Sealing,
    bytes_of_state,
    check_space,
    describe,
    is_write_failure,
    publish,
    replace_model,
    rotate,
)
from luthier.checkpoints.verify import (
    HAS_MANIFEST,
    STATE,
    STATE_ENTRY,
    newest_valid,
    saved_entry_of,
)
from luthier.distributed.strategy import Learner
from luthier.errors import SaveError
from luthier.processes.ranks import gather_objects

TOKEN = ".first-rank"
"""A file that the first rank puts into a stage: who sees it shares its file system."""


class Saved(Learner, Protocol):
    """A trainer as its checkpoints know it."""

    def store_flos(self) -> None:
        """Adds up what ranks have computed."""

    def save_states(self, folder: str, written: Callable[[], None]) -> None:
        """Writes all but the weights; says when the largest files are whole."""

    def save_weights(self, folder: str) -> None:
        """Writes the weights of a checkpoint."""


class CheckpointSaver:
    """Saves for one trainer; every rank has one, and all call it together.

    A checkpoint is written to a stage by all ranks, and the first one publishes it. On machines
    that do not see the first one's folder the first rank of each publishes its own. A failure of
    one rank is a failure of all.

    Args:
        trainer: whose state is saved.
        identity: what the manifests say of the run.

    Attributes:
        hub: takes what is uploaded.
        pretrained: writes the model's files.
        last_published: the newest checkpoint that this process knows to be good.
    """

    def __init__(self, trainer: Saved, identity: Manifest) -> None:
        self._trainer = trainer
        self.hub, self.pretrained = Hub(trainer), PretrainedFiles()
        self._identity = identity
        self._output_dir = Path(trainer.args.output_dir)
        self._limit = trainer.arguments.training.save_total_limit
        self._max_failed = trainer.arguments.training.max_failed_saves
        self._num_failed = 0
        self._last_size: int | None = None
        self._publishes = True
        self._best_before: str | None = None
        self.last_published: Path | None = None

    def entry_of(self, state: TrainerState) -> dict[str, Any] | None:
        """What `save` was given when this state was saved; None where another program wrote it."""
        return saved_entry_of(asdict(state)) or None

    def name_best(self) -> None:
        """Notes where the best model is, as soon as a checkpoint of it is there or being made."""
        state = self._trainer.state
        best = state.best_global_step
        if best is None:
            return
        folder = checkpoint_folder(self._output_dir, best)
        if best == state.global_step or folder.is_dir():
            state.best_model_checkpoint = str(folder)

    def finish(self) -> None:
        """Waits for uploads."""
        self.hub.finish()

    def save_state(self) -> None:
        """Writes trainer_state.json to the run's folder, whole."""
        if self._trainer.is_world_process_zero():
            text = json.dumps(asdict(self._trainer.state), indent=2, sort_keys=True)
            write_whole(self._output_dir / STATE, [text, "\n"])

    def save(self, progress: dict[str, Any]) -> Path | None:
        """Publishes a checkpoint of this moment, with `progress` beside the library's state.

        Returns:
            Its folder; None when it could not be written, which a line says.

        Raises:
            SaveError: if that has happened `max_failed_saves` times in a row.
        """
        trainer, step = self._trainer, self._trainer.state.global_step
        self._best_before = trainer.state.best_model_checkpoint
        trainer.state.stateful_callbacks[STATE_ENTRY] = {
            "args": {},
            "attributes": {HAS_MANIFEST: True, **progress},
        }
        trainer.store_flos()
        self.name_best()
        folder = checkpoint_folder(self._output_dir, step)
        stage = stage_folder(self._output_dir, folder.name, self._identity.run_id)
        problem = self._attempt(stage, folder)
        if problem is not None:
            trainer.state.best_model_checkpoint = self._best_before
            self._tell(folder, problem)
            return None
        self._num_failed = 0
        self._best_before = None
        self.last_published = folder
        if self._publishes:
            self._rotate(self._limit, folder, waits=False)
        if trainer.args.push_to_hub:
            self.hub.push_checkpoint(folder)
        return folder

    def save_model(self, write: Callable[[str], None], end: str) -> None:
        """Replaces the model in the run's folder by that of this moment, or raises a SaveError.

        `end` is why the run is over, see `Manifest`.
        """
        stage = stage_folder(self._output_dir, FINAL, self._identity.run_id)
        problem = self._agreed(lambda: self._make_stage(stage))
        if problem is None:
            self._find_publishers(stage)
            problem = self._agreed(lambda: write(str(stage)), is_collective=True)
        if problem is None:
            problem = self._agreed(lambda: self._replace_model(stage, end))
        if problem is None:
            return
        self._remove(stage)
        remedy = (
            f"{self.last_published} is good: make room and start the same command again; it only "
            "writes the model."
            if self.last_published is not None
            else "No checkpoint was written before it."
        )
        raise SaveError(
            f"the model could not be written to {self._output_dir}: {problem}. {remedy}"
        )

    def _attempt(self, stage: Path, folder: Path) -> str | None:
        needed = self._needed()
        problem = self._agreed(lambda: self._prepare(stage, needed))
        if problem is None:
            self._find_publishers(stage)
            sealing = Sealing()
            try:
                problem = self._agreed(lambda: self._write(stage, sealing), is_collective=True)
                if problem is None:
                    problem = self._agreed(lambda: self._publish(stage, folder, sealing))
            finally:
                sealing.close()
        if problem is not None:
            self._remove(stage)
        return problem

    def _write(self, stage: Path, sealing: Sealing) -> None:
        """Writes this rank's files; those that are whole are hashed in the meantime."""
        trainer = self._trainer

        def written() -> None:
            if self._publishes and not self._is_sharded:  # one rank writes nearly all
                sealing.begin(path for path in files_below(stage) if path.suffix != ".pth")

        if not trainer.args.save_only_model:  # the largest first
            trainer.save_states(str(stage), written)
        trainer.save_weights(str(stage))
        written()
        if trainer.args.should_save:
            states = trainer.state.stateful_callbacks
            for callback in [*trainer.callback_handler.callbacks, trainer.control]:
                if isinstance(callback, ExportableState):
                    name, state = type(callback).__name__, callback.state()
                    if isinstance(states.get(name), list):
                        states[name].append(state)
                    else:
                        states[name] = state
            trainer.state.save_to_json(str(stage / STATE))

    def _agreed(self, act: Callable[[], None], *, is_collective: bool = False) -> str | None:
        """Acts on all ranks, and says what went wrong on the first of those where it did.

        Where ranks wait for each other inside (`is_collective`), a rank that fails cannot tell the
        others, and the run ends by a SaveError.
        """
        failure = None
        try:
            act()
        except Exception as problem:
            if not is_write_failure(problem):
                raise
            failure = describe(problem)
            if is_collective and self._is_sharded:
                alone = SaveError(
                    f"rank {self._trainer.args.process_index} cannot write its part of a "
                    f"checkpoint to {self._output_dir}: {failure}. Others wait for it, so the run "
                    f"ends. {self._last_good()}"
                )
                alone.is_common = False
                raise alone from problem
        return next((each for each in gather_objects(failure) if each is not None), None)

    @property
    def _is_sharded(self) -> bool:
        trainer = self._trainer
        return trainer.strategy.shards_states and trainer.args.world_size > 1

    def _prepare(self, stage: Path, needed: int) -> None:
        self._make_stage(stage)
        if self._trainer.args.should_save:
            try:
                check_space(self._output_dir, needed)
            except OSError:
                if self._limit is None:
                    raise
                self._rotate(self._limit - 1, self.last_published or newest_valid(self._output_dir))
                check_space(self._output_dir, needed)

    def _make_stage(self, stage: Path) -> None:
        args = self._trainer.args
        if args.should_save:
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(parents=True, exist_ok=True)
        if args.process_index == 0:
            (stage / TOKEN).touch()

    def _needed(self) -> int:
        if self._last_size is None and self.last_published is not None:
            self._last_size = size_of(self.last_published)
        if self._last_size is None:
            trainer = self._trainer
            beside = BESIDE_TENSORS + OF_A_TOKEN * len(trainer.processing_class)
            self._last_size = beside + bytes_of_state(
                trainer.model,
                trainer.optimizer,
                only_model=trainer.args.save_only_model,
                is_sharded=self._is_sharded,
            )
        return int(self._last_size * MARGIN)

    def _find_publishers(self, stage: Path) -> None:
        """Whether this rank names what it sees: the first, and one where that is not seen."""
        args = self._trainer.args
        sees_first = (stage / TOKEN).exists()
        self._publishes = args.process_index == 0 or (
            args.local_process_index == 0 and not sees_first
        )

    def _publish(self, stage: Path, folder: Path, sealing: Sealing) -> None:
        if self._publishes:
            (stage / TOKEN).unlink(missing_ok=True)
            state = self._trainer.state
            losses = [line["loss"] for line in state.log_history if "loss" in line]
            manifest = self._identity.at(
                state.global_step, state.max_steps, losses[-1] if losses else None
            )
            self._last_size = publish(stage, folder, manifest, sealing).size

    def _replace_model(self, stage: Path, end: str) -> None:
        (stage / TOKEN).unlink(missing_ok=True)
        if self._publishes and stage.is_dir():  # a machine may have nothing of the model
            state = self._trainer.state
            manifest = self._identity.at(state.global_step, state.max_steps, end=end)
            replace_model(stage, self._output_dir, manifest)

    def _rotate(self, limit: int | None, good: Path | None, *, waits: bool = True) -> None:
        named = {self._trainer.state.best_model_checkpoint, self._best_before}
        best = [Path(each) for each in named if each is not None]
        rotate(self._output_dir, limit, good, best, waits=waits)

    def _remove(self, stage: Path) -> None:
        if self._trainer.args.local_process_index == 0:
            shutil.rmtree(stage, ignore_errors=True)
        gather_objects(None)  # nobody writes into a new stage before the old one is gone

    def _tell(self, folder: Path, problem: str) -> None:
        self._num_failed += 1
        line = (
            f"{folder} could not be written: {problem} ({self._num_failed} of at most "
            f"{self._max_failed} failures in a row). {self._last_good()}"
        )
        if self._num_failed >= self._max_failed:
            raise SaveError(f"{line} Make room in {self._output_dir}, and start the run again.")
        console.warn(f"{line} Training goes on.")

    def _last_good(self) -> str:
        if self.last_published is None:
            return "There is no checkpoint before it."
        return f"The last good one is {self.last_published}."
