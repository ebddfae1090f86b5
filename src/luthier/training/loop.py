"""The one loop of every stage: steps, events for callbacks, evaluations, checkpoints."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import (
    DefaultFlowCallback,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    enable_full_determinism,
    set_seed,
)
from transformers import TrainingArguments as LibraryArguments
from transformers.debug_utils import DebugOption, DebugUnderflowOverflow
from transformers.integrations import get_reporting_integration_callbacks
from transformers.integrations.neftune import activate_neftune, deactivate_neftune
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import (
    SaveStrategy,
    TrainerMemoryTracker,
    TrainOutput,
    align_special_tokens,
    speed_metrics,
    suppress_progress_bars,
)
from transformers.training_args import ParallelMode
from transformers.utils import logging

from luthier import console
from luthier.batching.batch import Step
from luthier.batching.prefetch import Prefetch
from luthier.batching.steps import StepLoader, StepLoaders
from luthier.distributed.strategy import Strategy
from luthier.errors import OutOfMemory
from luthier.example import ExampleSet
from luthier.modeling.device import is_out_of_memory
from luthier.processes.ranks import gather_objects, num_ranks
from luthier.training.evaluate import EvaluationCut, evaluate_set, score_set
from luthier.training.metrics import Meter, Work
from luthier.training.nonfinite import NonFiniteGuard, refuse_nonfinite
from luthier.training.oom import OomHandler
from luthier.training.optimizers.restored import Group, put_in, settings_of_groups
from luthier.training.progress import Progress
from luthier.training.state import (
    find_best_again,
    load_random,
    make_callbacks_anew,
    restore_counters,
    save_random,
    stateful,
    why_over,
)
from luthier.training.step import AFTER_EVALUATIONS, learning_rate_of, train_step

if TYPE_CHECKING:
    from luthier.arguments.record import Arguments
    from luthier.stages.stage import Stage

SCALER = "scaler.pt"
"""The file of a checkpoint that holds what fp16's scaler has learned."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run trains."""

    num_epochs: int  # begun ones count whole
    steps_per_epoch: int  # updates of an epoch
    max_steps: int  # updates of the run


class Trainer:
    """Trains, evaluates and saves a model, with the events and flags of transformers' callbacks.

    Each item of the training loader is a whole optimizer update; see `train_step`.

    Args:
        arguments: the run's configuration.
        args: the same as transformers takes it, which callbacks are given.
        stage: what is learned.
        strategy: how the processes hold what is trained.
        accelerator: accelerate's state of the run.
        model: ready to train.
        tokenizer: saved with every checkpoint.
        train_dataset: the examples; None when nothing is trained.
        eval_dataset: the same, by data set name; a single unnamed set stands under "".
        callbacks: heard at every event.
        requests: what is asked of the run from outside, see `callbacks/requests.py`.
        optimizer: makes the optimizer of a model.
        schedule: makes the learning rate's schedule of an optimizer over so many steps.
        suggest: what to say where memory has run out, given the tokens of a micro-batch and of its
            longest sequence, or 0.
        meter: of the run's speed.

    Attributes:
        saver: writes checkpoints and the model at the end; set before training.
        work: what this process has computed in training.
    """

    saver: Any

    def __init__(
        self,
        arguments: Arguments,
        args: LibraryArguments,
        stage: Stage,
        strategy: Strategy,
        accelerator: Accelerator,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        train_dataset: ExampleSet | None,
        eval_dataset: dict[str, ExampleSet],
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
        *,
        requests: Any,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        schedule: Callable[[Any, int], torch.optim.lr_scheduler.LRScheduler],
        suggest: Callable[..., str],
        meter: Callable[[Trainer], Meter] = lambda trainer: Meter(),
    ) -> None:
        self.arguments, self.args, self.stage, self.strategy = arguments, args, stage, strategy
        (enable_full_determinism if args.full_determinism else set_seed)(args.seed)
        self.accelerator: Any = accelerator
        self._memory_tracker = TrainerMemoryTracker(args.skip_memory_metrics)
        self._memory_tracker.start()
        logging.set_verbosity(args.get_process_log_level())
        is_late = not strategy.computes_alone or args.fp16_full_eval or args.bf16_full_eval
        if not is_late:  # else it comes there with its engine, in its parts, or in its dtype
            model.to(args.device)
        self.model = self.model_wrapped = model
        self.is_prepared, self.is_in_train = False, False
        self.reference: Any = None
        self.processing_class = tokenizer
        self.train_dataset: Any = train_dataset
        self.eval_dataset: Any = eval_dataset.get("", eval_dataset or None)
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        assert isinstance(tokenizer.pad_token_id, int)
        self.loaders = StepLoaders(
            arguments, args, tokenizer.pad_token_id, mismatches=stage.mismatches_answers
        )
        self.requests, self.work, self.meter = requests, Work(), meter(self)
        self.guard = NonFiniteGuard(
            arguments.training.on_nonfinite,
            has_scaler=args.fp16,
            name_rows=lambda rows: self.train_dataset.origins(rows),
        )
        self._suggest, self._make_optimizer, self._make_schedule = suggest, optimizer, schedule
        options: dict[str, Any] = {
            "can_retry": strategy.computes_alone,
            "pad_token_id": tokenizer.pad_token_id,
            "suggest": self.suggest,
        }
        self.oom = OomHandler(exchanges=num_ranks() > 1, **options)
        # an evaluation exchanges nothing before its end
        self.evaluation_oom = OomHandler(exchanges=False, **options)
        self.progress = Progress(stage, accelerator)
        self._flops_of_rank, self._num_taken = 0.0, 0
        self._is_restored = self._has_told_of_evaluation = False
        self.callback_handler = CallbackHandler(
            [
                DefaultFlowCallback,
                *get_reporting_integration_callbacks(args.report_to),
                *callbacks,
                requests,
            ],
            model,
            tokenizer,
            None,
            None,
        )
        if args.should_save:
            os.makedirs(args.output_dir, exist_ok=True)
        self.control = TrainerControl()
        self.state = TrainerState(
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
            stateful_callbacks=stateful(self.callback_handler, self.control),
        )
        self.control = self.callback_handler.on_init_end(args, self.state, self.control)
        model.config.use_cache = args.use_cache
        strategy.begin(self)
        self._memory_tracker.stop_and_update_metrics()

    # What is known before training

    def take(self, layout: Any) -> None:
        """Computes from now on as the check at the start has found right; see `layout.py`."""
        self.loaders.layout, self.loaders.shares_prefixes = layout.name, layout.shares_prefixes
        self.oom.share_prefixes = self.evaluation_oom.share_prefixes = layout.shares_prefixes
        asked, ddp = (
            self.arguments.training.ddp_find_unused_parameters,
            self.accelerator.ddp_handler,
        )
        if layout.has_idle_weights and asked is None and ddp is not None:
            ddp.find_unused_parameters = True
            if self.args.world_size > 1:
                console.info("ddp_find_unused_parameters = True (the check has found such weights)")

    def suggest(self, num_tokens: int = 0, longest: int = 0) -> str:
        """What helps when memory has run out in a micro-batch of so many tokens."""
        return self._suggest(
            self.model,
            self.arguments,
            num_tokens=num_tokens,
            longest=longest,
            reference=self.reference.num_bytes if self._may_read_before() else 0,
            is_padded=self.loaders.layout == "padded",
            autocast=self.accelerator.autocast if self.strategy.computes_alone else None,
        )

    def _may_read_before(self) -> bool:
        stage, asked = self.stage, self.arguments.finetuning.precompute_ref
        is_kept = stage.keeps_reference and not stage.mismatches_answers and asked is not True
        is_known = self.train_dataset is not None and self.train_dataset.num_examples is not None
        return self.reference is not None and is_kept and is_known

    def get_train_dataloader(self) -> StepLoader:
        """A loader whose items are this rank's share of each optimizer step."""
        return self.loaders.train(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: str | ExampleSet | None = None) -> StepLoader:
        """A loader over a whole evaluation set."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self.loaders.evaluate(
            self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        )

    def schedule(self, steps_per_epoch: int) -> Schedule:
        """How long the run trains by `max_steps`, or by `num_train_epochs`."""
        if self.args.max_steps > 0:
            epochs = -(-self.args.max_steps // steps_per_epoch)
            return Schedule(epochs, steps_per_epoch, self.args.max_steps)
        wanted = self.args.num_train_epochs
        return Schedule(math.ceil(wanted), steps_per_epoch, math.ceil(wanted * steps_per_epoch))

    # The optimizer

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Makes both, where they are not there."""
        self.create_optimizer()
        self.create_scheduler(num_training_steps)

    def create_optimizer(self) -> torch.optim.Optimizer:
        """The choice of `optim` for the weights that learn."""
        if self.optimizer is None:
            self.optimizer = self._make_optimizer(self.model)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate's schedule, once."""
        if self.lr_scheduler is None:
            of = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = self._make_schedule(of, num_training_steps)
        self._groups: list[Group] = settings_of_groups(self.optimizer)
        scheduler: torch.optim.lr_scheduler.LRScheduler = self.lr_scheduler
        return scheduler

    # Training

    def train(self, resume_from_checkpoint: str | None = None) -> TrainOutput:
        """Trains to the end of the schedule, or until a callback ends it.

        Args:
            resume_from_checkpoint: folder of the checkpoint that is gone on from.

        Raises:
            NonFiniteError: when a loss, a gradient or a trained weight is not finite.
            OutOfMemory: when nothing can be computed in smaller pieces.
            Stopped: when the run was asked to stop, and did.
        """
        self._memory_tracker.start()
        self.is_in_train = True
        try:
            with suppress_progress_bars() if self.args.push_to_hub else nullcontext():
                metrics = self._train(resume_from_checkpoint)
            self._memory_tracker.stop_and_update_metrics(metrics)
            self._end(metrics)
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            said = str(problem).partition("\n")[0]
        else:
            return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)
        self.model.zero_grad()
        raise OutOfMemory(f"memory has run out between micro-batches. {said}\n{self.suggest()}")

    def _train(self, checkpoint: str | None) -> dict[str, float]:
        args, handler = self.args, self.callback_handler
        if args.fp16_full_eval or args.bf16_full_eval:
            self.model.to(args.device)
        align_special_tokens(self.model, self.processing_class)
        self._noise = None
        if args.neftune_noise_alpha is not None:
            self._noise = activate_neftune(self.model, args.neftune_noise_alpha, self.accelerator)
        if DebugOption.UNDERFLOW_OVERFLOW in args.debug:
            DebugUnderflowOverflow(self.model)
        loader = self.get_train_dataloader()
        schedule = self.schedule(len(loader))
        self._begin(schedule, checkpoint)
        self.prepare(checkpoint)
        handler.train_dataloader = loader
        begun = time.time()
        self.model_wrapped.zero_grad()
        self.control = handler.on_train_begin(args, self.state, self.control)
        if args.eval_on_start:
            self._evaluate_in_training(moves_schedule=False)

        first_epoch, num_made = divmod(self.state.global_step, schedule.steps_per_epoch)
        for epoch in range(first_epoch, schedule.num_epochs):
            self.control = handler.on_epoch_begin(args, self.state, self.control)
            if not self._is_restored:
                self._restore()
                self._announce(schedule)
                self._make_owed_evaluation()
                if self.state.global_step >= schedule.max_steps:
                    self.control.should_training_stop = True
                if self.control.should_training_stop:
                    break
            is_resumed = checkpoint is not None and epoch == first_epoch
            num_skipped = num_made if is_resumed and not args.ignore_data_skip else 0
            self._run_epoch(loader, epoch, num_skipped, checkpoint if is_resumed else None)
            if self.control.should_training_stop:
                break
        if not self._is_restored:  # no epoch was left
            self._restore()
            self._make_owed_evaluation()
        if self.requests.is_stopping:
            handler.on_train_end(args, self.state, self.control)
            self.requests.raise_stopped(self.state)

        work = self.work
        metrics: dict[str, float] = speed_metrics(
            "train", begun, num_samples=work.examples, num_steps=work.steps
        )
        self.store_flos()
        metrics["total_flos"] = self.state.total_flos
        metrics["train_loss"] = self.progress.mean_loss()
        return metrics

    def _end(self, metrics: dict[str, float]) -> None:
        """Logs the numbers of training, and takes the best weights up."""
        self.log(metrics)
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            self.strategy.load_best(self, best)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.saver.finish()
        if self._noise is not None:
            deactivate_neftune(self.model, self._noise, self.accelerator)
        self.is_in_train = False

    def _begin(self, schedule: Schedule, checkpoint: str | None) -> None:
        """The state that training begins with, which is the checkpoint's."""
        args = self.args
        state = TrainerState(stateful_callbacks=stateful(self.callback_handler, self.control))
        state.train_batch_size = args.train_batch_size
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            if args.restore_callback_states_from_checkpoint:
                self.control = make_callbacks_anew(state, self.callback_handler, self.control)
            find_best_again(state, Path(args.output_dir))
        # logs, evaluates and saves as often as this run is told to, not as the one before was
        state.compute_steps(args, schedule.max_steps)
        state.max_steps, state.num_train_epochs = schedule.max_steps, schedule.num_epochs
        state.is_local_process_zero = self.is_local_process_zero()
        state.is_world_process_zero = self.is_world_process_zero()
        self.state = state

    def prepare(self, checkpoint: str | None) -> None:
        """Optimizer, schedule and wrapped model for the steps of `state`, as they begin."""
        args, state = self.args, self.state
        self.accelerator.free_memory()
        self.optimizer = self.lr_scheduler = None
        self.strategy.prepare(self, state.max_steps, checkpoint)
        self.is_prepared = True
        if checkpoint is not None:
            changed = put_in(self.optimizer, self.lr_scheduler, self._groups)
            if changed:
                console.info(f"the optimizer goes on with other settings: {changed}")
            scaler, saved = self.accelerator.scaler, Path(checkpoint) / SCALER
            if scaler is not None and saved.is_file():
                scaler.load_state_dict(torch.load(saved, weights_only=True))
        handler = self.callback_handler
        handler.model, handler.optimizer = self.model, self.optimizer
        handler.lr_scheduler = self.lr_scheduler
        if args.process_index > 0:  # the same dropout on every rank would be less of it
            set_seed(args.seed + args.process_index)
        self.meter.restart(state.total_flos)
        self.work, self._is_restored = Work(), False
        self.progress = Progress(self.stage, self.accelerator)

    def _restore(self) -> None:
        """Takes up what was measured since the last log, and the counters of callbacks."""
        self._is_restored = True
        state, ours = self.state, self.saver.entry_of(self.state)
        self.requests.restore(ours)
        restore_counters(state, self.callback_handler)
        self._num_taken = 0
        is_new = ours is None or self.args.ignore_data_skip
        self.train_dataset.start(None if is_new else ours.get("stream"))
        if ours is None:
            return
        self.progress.restore(ours, state.global_step)
        self.guard.restore(ours["numbers"])
        self.oom.restore(ours["token_limits"])

    def _announce(self, schedule: Schedule) -> None:
        steps, per_epoch = schedule.max_steps, schedule.steps_per_epoch
        epochs = f", {per_epoch:,} an epoch: {steps / per_epoch:.4g} epochs"
        console.info(
            f"{steps:,} steps of {self.loaders.examples_per_step:,} rows"
            f"{epochs if self.train_dataset.num_examples else ' of a stream'}"
        )
        budget = self.loaders.token_budget(self.arguments.training.per_device_train_batch_size)
        shared = ", shared prefixes computed once" if self.loaders.shares_prefixes else ""
        console.info(
            f"micro-batches of up to {budget:,} tokens, layout {self.loaders.layout}{shared}"
        )

    def _run_epoch(
        self, loader: StepLoader, epoch: int, num_skipped: int, checkpoint: str | None
    ) -> None:
        """The steps of an epoch behind those that were made before a checkpoint, if it goes on."""
        if checkpoint is not None and not num_skipped:
            load_random(self.args, checkpoint)
        loader.set_epoch(epoch, num_skipped)
        steps: Prefetch[Step] = Prefetch(loader)  # each is built while the one before it computes
        norm: Tensor | float | None = None
        rate: float | None = None
        try:
            for number, step in enumerate(steps, num_skipped + 1):
                if checkpoint is not None and number == num_skipped + 1 > 1:
                    load_random(self.args, checkpoint)
                norm, rate = self._make_step(step, epoch + number / len(loader))
                self._log_evaluate_save(norm, rate)
                if self.control.should_epoch_stop or self.control.should_training_stop:
                    break
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._log_evaluate_save(norm, rate)
        finally:
            steps.close()
            self.train_dataset.close()

    def _make_step(self, step: Step, epoch: float) -> tuple[Tensor | float | None, float]:
        """One step with its events; the norm of its gradient and the rate it was made with."""
        args, state, handler = self.args, self.state, self.callback_handler
        self.control = handler.on_step_begin(args, state, self.control)
        learned = train_step(self, step, self.guard, self.oom)
        self.progress.add(learned)
        self._flops_of_rank += self.meter.flops(step)
        self.meter.count(step.num_tokens)
        self.work.add(learned.computed)
        self._num_taken += step.num_examples
        state.num_input_tokens_seen += step.num_tokens
        state.global_step += 1
        state.epoch = epoch
        self.control = handler.on_step_end(args, state, self.control)
        return learned.norm, learned.learning_rate

    # Logs, evaluations, checkpoints

    def _log_evaluate_save(self, norm: Tensor | float | None, rate: float | None) -> None:
        """Does what the flags ask for; an evaluation is left where the run is to stop."""
        control = self.control
        if control.should_evaluate and self.eval_dataset is None:
            control.should_evaluate = False
            if not self._has_told_of_evaluation:
                self._has_told_of_evaluation = True
                console.warn(
                    "a callback asks for an evaluation, and there are no rows to evaluate: name "
                    "them by eval_dataset, or set val_size. Training goes on without."
                )
        if control.should_log and self.progress.num_steps:
            self._log_steps(norm, learning_rate_of(self) if rate is None else rate)
        if self.control.should_evaluate:
            try:
                with self.requests.cutting():
                    is_best = self._take_note(self._evaluate_in_training())
            except EvaluationCut:
                pass
            else:
                if self.args.save_strategy == SaveStrategy.BEST:
                    self.control.should_save = is_best
        if self.control.should_save:
            refuse_nonfinite(self.model, self.state.global_step)
            self.tell_of_stream()
            with self.meter.paused():
                self.saver.save(self._progress())
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _log_steps(self, norm: Tensor | float | None, rate: float) -> None:
        """Logs the means since the last log."""
        measured = self.progress.read()
        logs = {"loss": measured.pop("loss")}
        if norm is not None:
            logs["grad_norm"] = norm.item() if isinstance(norm, Tensor) else norm
        logs["learning_rate"] = rate
        logs |= measured
        self.store_flos()
        logs |= self.meter.read(self.state.total_flos, self.args.world_size)
        logs["total_tokens"] = self.state.num_input_tokens_seen
        self.guard.annotate(logs, self.state.global_step)
        self.log(logs)

    def log(self, logs: dict[str, float]) -> None:
        """Hands numbers to the callbacks, and keeps them in `state.log_history`."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def store_flos(self) -> None:
        """Adds the operations of all ranks to the state; every rank must call it."""
        flops = torch.tensor([self._flops_of_rank], device=self.args.device)
        is_alone = self.args.parallel_mode != ParallelMode.DISTRIBUTED
        self.state.total_flos += (
            self._flops_of_rank if is_alone else self.accelerator.gather(flops).sum().item()
        )
        self._flops_of_rank = 0.0

    def evaluate(
        self,
        eval_dataset: str | ExampleSet | dict[str, ExampleSet] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Means over all units of a set, logged; of several named sets one after the other."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            metrics: dict[str, float] = {}
            for name, each in dataset.items():
                metrics |= self.evaluate(each, f"{metric_key_prefix}_{name}")
            return metrics
        self._memory_tracker.start()
        metrics = evaluate_set(
            self,
            self.get_eval_dataloader(dataset),
            self.evaluation_oom,
            metric_key_prefix,
            as_held=self.is_in_train,
        )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def predict(
        self, test_dataset: ExampleSet, metric_key_prefix: str = "test"
    ) -> dict[str, float]:
        """The means of a set that is neither trained nor evaluated on, told by `on_predict`."""
        metrics = evaluate_set(
            self,
            self.get_eval_dataloader(test_dataset),
            self.evaluation_oom,
            metric_key_prefix,
            as_held=self.is_in_train,
        )
        self.control = self.callback_handler.on_predict(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def score(self, dataset: ExampleSet) -> list[list[float]]:
        """What a reward model says of each row's sequences, in the order of the rows."""
        return score_set(self, self.get_eval_dataloader(dataset), self.evaluation_oom)

    def _evaluate_in_training(self, *, moves_schedule: bool = True) -> dict[str, float]:
        with self.meter.paused():
            metrics = self.evaluate()
        if moves_schedule and isinstance(self.lr_scheduler, AFTER_EVALUATIONS):
            self.lr_scheduler.step(metrics[self._best_name()])
        return metrics

    def _best_name(self) -> str:
        return f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"

    def _take_note(self, metrics: dict[str, float]) -> bool:
        """Whether an evaluation is the best so far, which the state then says."""
        args, state = self.args, self.state
        if args.metric_for_best_model is None:
            return False
        value, best = metrics[self._best_name()], state.best_metric
        if best is None:
            best = -math.inf if args.greater_is_better else math.inf
            state.best_metric = best
        if not (value > best if args.greater_is_better else value < best):
            return False
        state.best_metric = value
        if args.save_strategy != SaveStrategy.NO:
            state.best_global_step = state.global_step
        return True

    def _make_owed_evaluation(self) -> None:
        """Makes the evaluation that the run before left out, because it was to stop."""
        if not self.requests.owes_evaluation or self.eval_dataset is None:
            return
        try:
            with self.requests.cutting():
                metrics = self._evaluate_in_training()
        except EvaluationCut:
            self.control.should_save = False  # the checkpoint that owes it is there
            return
        self._take_note(metrics)
        self.saver.name_best()

    def _progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the states that it has files for."""
        return {
            "token_limits": gather_objects(self.oom.tokens),
            **self.requests.progress(),
            "numbers": self.guard.state(),
            **self.progress.state(self.state.global_step),
            "stream": self.train_dataset.state(self._num_taken),
        }

    def save_states(self, folder: str, written: Callable[[], None]) -> None:
        """Writes what a checkpoint needs to go on beside weights; every rank its own part.

        `written` is called when the largest files are whole.
        """
        self.strategy.save_states(self, folder)
        written()
        if self.accelerator.scaler is not None and self.args.should_save:
            torch.save(self.accelerator.scaler.state_dict(), Path(folder) / SCALER)
        save_random(self.args, folder)

    def save_weights(self, folder: str) -> None:
        """Writes the weights of a checkpoint, whole or in the strategy's parts."""
        if not self.strategy.save_weights(self, folder):
            self.write_model(folder)

    def write_model(self, folder: str) -> None:
        """Writes weights, configuration and tokenizer to a folder; every rank must call it."""
        weights = self.strategy.result_weights(self)
        if self.args.should_save:
            self.saver.pretrained.write(self.model, self.processing_class, Path(folder), weights)

    def save_model(self, output_dir: str | None = None) -> None:
        """Writes the model to a folder; to that of the run so that half a one is never met."""
        if output_dir is not None and Path(output_dir) != Path(self.args.output_dir):
            self.write_model(output_dir)
            return
        refuse_nonfinite(self.model, self.state.global_step)
        why = why_over(self.state, self.callback_handler.callbacks)
        self.saver.save_model(self.write_model, why)

    def tell_of_stream(self) -> None:
        """Says what became of the rows that were streamed so far."""
        for line in self.train_dataset.lines():
            console.info(line)

    # Callbacks and ranks

    def add_callback(self, callback: type[TrainerCallback] | TrainerCallback) -> None:
        """Has a callback heard from now on."""
        self.callback_handler.add_callback(callback)

    def pop_callback(
        self, callback: type[TrainerCallback] | TrainerCallback
    ) -> TrainerCallback | None:
        """Takes a callback, or the first of a class, out, and gives it back."""
        found: TrainerCallback | None = self.callback_handler.pop_callback(callback)
        return found

    def remove_callback(self, callback: type[TrainerCallback] | TrainerCallback) -> None:
        """Takes a callback, or the first of a class, out."""
        self.callback_handler.remove_callback(callback)

    def is_local_process_zero(self) -> bool:
        """Whether this is the first rank of its machine."""
        return bool(self.args.local_process_index == 0)

    def is_world_process_zero(self) -> bool:
        """Whether this is the first rank."""
        return bool(self.args.process_index == 0)
