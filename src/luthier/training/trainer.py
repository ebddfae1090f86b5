"""The one trainer of every stage: transformers' loop over our optimizer steps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers import TrainingArguments as LibraryArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput

from luthier import console
from luthier.arguments.record import Arguments
from luthier.arguments.resolve import resolve_warmup_steps
from luthier.batching.ahead import Ahead
from luthier.batching.batch import MicroBatch, Step
from luthier.batching.steps import StepLoader
from luthier.checkpoints.files import write_whole
from luthier.checkpoints.fingerprint import RunFingerprint, fingerprint_run
from luthier.checkpoints.folders import deepspeed_parts
from luthier.checkpoints.pretrained import PretrainedFiles
from luthier.checkpoints.saver import CheckpointSaver
from luthier.checkpoints.verify import HAS_MANIFEST, STATE, STATE_ENTRY
from luthier.checkpoints.writing import name_best
from luthier.data.stream import Stream
from luthier.distributed import deepspeed
from luthier.distributed.fsdp_trainer import FsdpTrainer
from luthier.distributed.strategy import find_strategy
from luthier.modeling.counts import StepFlops, count_flops
from luthier.modeling.device import peak_flops
from luthier.modeling.dtypes import computed_dtype, held_dtypes
from luthier.modeling.memory import recomputes_activations
from luthier.processes.ranks import gather_objects
from luthier.stages.stage import Loss, Stage
from luthier.training.callbacks.requests import OWED, EvaluationCut, Requests, owes_evaluation
from luthier.training.callbacks.told import ToldHandler
from luthier.training.callbacks.trackers import settle_trackers
from luthier.training.careful_trainer import CarefulTrainer
from luthier.training.ending import find_best_again, why_over
from luthier.training.layout import Layout
from luthier.training.meter import Meter
from luthier.training.numbers.finite import refuse_nonfinite
from luthier.training.optimizers.make import make_optimizer
from luthier.training.optimizers.restored import Group, put_in, settings_of_groups
from luthier.training.sums import MetricSums
from luthier.training.work import Work


class LuthierTrainer(CarefulTrainer, FsdpTrainer):
    """Runs a stage with transformers' loop, callbacks, optimizers, schedulers and trackers.

    The gradient of a step is the sum of the losses of all its micro-batches and ranks, divided once
    by the units of the whole step.

    Args:
        arguments: the run's configuration.
        library_arguments: the same as transformers takes it, see `to_training_arguments.py`.
        stage: what is learned.
        model: ready to train.
        tokenizer: saved with every checkpoint.
        train_dataset: encoded examples with counts, or a stream of them; None when nothing is
            trained.
        eval_dataset: the same, by data set name; a single unnamed set stands under "".
        callbacks: heard at every event.

    Attributes:
        work: what this process has computed in training.
        requests: what is asked of the run from outside.
        identity: what checkpoints say of the run; set before training.
    """

    optimizer: Any
    control: Any
    callback_handler: Any
    _tr_loss: Tensor
    _groups: list[Group]
    _has_told_of_evaluation = False
    identity: RunFingerprint | None = None

    def __init__(
        self,
        arguments: Arguments,
        library_arguments: LibraryArguments,
        stage: Stage,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        train_dataset: datasets.Dataset | Stream | None,
        eval_dataset: dict[str, datasets.Dataset],
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
    ) -> None:
        self.arguments = arguments
        self.stage = stage
        self.work = Work()
        self._meter = Meter()
        self._metrics = MetricSums(stage.train_metrics)
        self._flops_until_log = 0.0
        self._is_restored = False
        self.requests = Requests(arguments.training.stop_grace_seconds)
        self._stream = train_dataset if isinstance(train_dataset, Stream) else None
        self._num_streamed = 0
        self._num_steps_unheard = 0
        self._pretrained = PretrainedFiles()
        super().__init__(
            model=model,
            args=library_arguments,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset.get("", eval_dataset or None),
            processing_class=tokenizer,
            callbacks=[*callbacks, self.requests],
        )
        self.callback_handler = ToldHandler(self.callback_handler, library_arguments)
        settle_trackers(self.callback_handler.callbacks)
        if self.is_deepspeed_enabled:
            deepspeed.settle(self)

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate's state, with float16 on a CPU, too, where it leaves it out without a word."""
        super().create_accelerator_and_postprocess()
        if self.args.fp16 and self.args.use_cpu and not self.is_deepspeed_enabled:
            self.accelerator.native_amp = True
            self.accelerator.scaler = torch.amp.GradScaler("cpu")

    def take(self, layout: Layout) -> None:
        """Computes from now on as the check at the start has found right."""
        self.layout, self.shares_prefixes = layout.name, layout.shares_prefixes
        self.memory.share_prefixes = layout.shares_prefixes
        self.evaluation_memory.share_prefixes = layout.shares_prefixes
        asked = self.arguments.training.ddp_find_unused_parameters
        if layout.has_idle_weights and asked is None and self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.find_unused_parameters = True
            if self.args.world_size > 1:
                console.info("ddp_find_unused_parameters = True (the check has found such weights)")

    @property
    def engine(self) -> dict[str, Any]:
        """What was chosen for this run, as run.json holds it."""
        training = self.arguments.training
        return {
            "weights": held_dtypes(self.model),
            "layout": self.layout,
            "shares_prefixes": self.shares_prefixes,
            "tokens_per_micro_batch": self.token_budget(training.per_device_train_batch_size),
            "gradient_checkpointing": recomputes_activations(self.model),
        }

    # One step

    def training_step(
        self, model: Any, inputs: Step, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of every micro-batch of a step.

        Returns:
            This rank's sum of losses, scaled so that its mean over ranks is the loss of the step.
        """
        model.train()
        if hasattr(self.optimizer, "train"):  # schedule-free optimizers switch modes
            self.optimizer.train()
        device = self.args.device
        return self.memory.train(model, inputs, device, lambda step: self._compute(model, step))

    def _compute(self, model: Any, step: Step) -> Tensor:
        self.numbers.begin(step, self._tr_loss)
        self._metrics_of_step = MetricSums()
        scale = self.args.world_size / max(step.num_units, 1)
        total = torch.zeros((), device=self.args.device)
        last = len(step.micro_batches) - 1
        for index, micro_batch in enumerate(step.micro_batches):
            total += self._learn_from(model, micro_batch, scale, is_last=index == last)
            if index != last:
                self.control = self.callback_handler.on_substep_end(
                    self.args, self.state, self.control
                )
        return total

    def _learn_from(
        self, model: Any, micro_batch: MicroBatch, scale: float, *, is_last: bool
    ) -> Tensor:
        """Adds a micro-batch's gradient; ranks mostly exchange theirs with the last one of a step.

        Returns:
            Its loss times `scale`.
        """
        is_deepspeed = self.is_deepspeed_enabled
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        waits = not (is_last or is_deepspeed or self.exchanges_every_gradient)
        with (
            self.memory.computing(micro_batch),
            self.accelerator.no_sync(model) if waits else contextlib.nullcontext(),
        ):
            found = self._micro_loss(model, micro_batch)
            self._metrics_of_step.add(found.metrics)
            loss = self.numbers.watched(found.total * scale)
            if is_deepspeed:
                deepspeed.backward(model, loss, is_last=is_last)
            else:
                self.accelerator.backward(loss)
        return loss.detach()

    @cached_property
    def _step_flops(self) -> StepFlops | None:
        return count_flops(self.model)

    @cached_property
    def _peak_flops(self) -> float | None:
        dtype = computed_dtype(self.accelerator.mixed_precision, self.model)
        return peak_flops(self.args.device, dtype)

    def floating_point_ops(self, inputs: Step) -> int:
        """What this rank's share of a step needs at least; 0 where that is not known."""
        if self._step_flops is None:
            return 0
        return sum(
            self._step_flops.of(each.depths(), each.sources.numel())
            for each in inputs.micro_batches
        )

    def _track_num_input_tokens(self, inputs: Step) -> None:
        self._meter.count(inputs.num_tokens)
        self.work.add(self.memory.latest or inputs)
        self._num_streamed += inputs.num_examples
        self._metrics_before = self._metrics.held()
        self._metrics.add(self._metrics_of_step.held())
        self.state.num_input_tokens_seen += inputs.num_tokens

    def whole_work(self) -> Work:
        """What all ranks have computed in training since this process began."""
        counts = [self.work.tokens, self.work.computed, self.work.learned]
        sums = self.accelerator.reduce(torch.tensor(counts, device=self.args.device), "sum")
        tokens, computed, learned = sums.tolist()
        return replace(self.work, tokens=tokens, computed=computed, learned=learned)

    # Optimizer

    def _init_training_state(
        self, max_steps: int, per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Logs, evaluates and saves as often as this run is told to, not as the one before was."""
        trained: tuple[int, int] = super()._init_training_state(
            max_steps, per_epoch, epochs, checkpoint, trial
        )
        self.state.compute_steps(self.args, max_steps)
        if checkpoint is not None:
            saved = TrainerState.load_from_json(str(Path(checkpoint) / STATE))
            find_best_again(self, saved.best_model_checkpoint)
        return trained

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Once, what `optim` says."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self.model, self.arguments, self.args)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Fills in what depends on the number of steps, and says it."""
        warmup_steps, note = resolve_warmup_steps(self.arguments.training, num_training_steps)
        if note:
            console.info(note)
        self.args.warmup_steps = warmup_steps
        if self.args.lr_scheduler_type == "warmup_stable_decay":
            options = dict(self.args.lr_scheduler_kwargs or {})
            if "num_decay_steps" not in options:
                remaining = num_training_steps - warmup_steps
                options["num_decay_steps"] = remaining - remaining // 3
                stable = options.get("num_stable_steps", remaining // 3)
                console.info(
                    f"lr_scheduler_kwargs: {stable} stable steps and {options['num_decay_steps']} "
                    "of decay (two thirds of the steps after warm-up)"
                )
            self.args.lr_scheduler_kwargs = options
        scheduler: torch.optim.lr_scheduler.LRScheduler = super().create_scheduler(
            num_training_steps, optimizer
        )
        self._groups = settings_of_groups(self.optimizer)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """What the optimizer keeps is the checkpoint's; what arguments say of it, this run's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.is_deepspeed_enabled:
            deepspeed.keep_clipping(self.deepspeed)
        changed = put_in(self.optimizer, self.lr_scheduler, self._groups)
        if changed:
            console.info(f"the optimizer goes on with other settings: {changed}")

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.accelerator.scaler is not None:  # the run before may have been one in float16
            super()._load_scaler(checkpoint)

    def _prepare_for_training(
        self, max_steps: int, dataloader: StepLoader, checkpoint: str | None
    ) -> Any:
        if self.is_deepspeed_enabled:  # a scheduler of its own asks for it before ours is made
            self.args.warmup_steps, _ = resolve_warmup_steps(self.arguments.training, max_steps)
            if checkpoint is not None and deepspeed_parts(Path(checkpoint)) is None:
                self._load_from_checkpoint(checkpoint)  # it holds weights only
                checkpoint = None
        prepared = super()._prepare_for_training(max_steps, dataloader, checkpoint)
        if (
            isinstance(self.model_wrapped, DistributedDataParallel)
            and self.args.ddp_broadcast_buffers is None
        ):  # they were sent once
            self.model_wrapped.broadcast_buffers = False
        if self.args.process_index > 0:  # the same dropout on every rank would be less of it
            set_seed(self.args.seed + self.args.process_index)
        is_checkpointed = recomputes_activations(self.model)
        for name in ("gradient_checkpointing", "activation_checkpointing"):
            self.callback_handler.told[name] = is_checkpointed
        self._meter = Meter()
        self._flops_until_log = self.state.total_flos
        self.work = Work()
        self._is_restored = False
        return prepared

    def _run_epoch(self, *args: Any, **options: Any) -> Any:
        if not self._is_restored:
            self._is_restored = True
            self._restore(self.state.stateful_callbacks or {})
            num_steps, per_epoch = self.state.max_steps, len(self.callback_handler.train_dataloader)
            epochs = f", {per_epoch:,} an epoch: {num_steps / per_epoch:.4g} epochs"
            console.info(
                f"{num_steps:,} steps of {self.examples_per_step:,} rows"
                f"{epochs if self._stream is None else ' of a stream'}"
            )
            budget = self.token_budget(self.arguments.training.per_device_train_batch_size)
            shared = ", shared prefixes computed once" if self.shares_prefixes else ""
            console.info(f"micro-batches of up to {budget:,} tokens, layout {self.layout}{shared}")
            self._pay_evaluation(options["ignore_keys_for_eval"])
            if self.control.should_training_stop or self.state.global_step >= num_steps:
                self.control.should_training_stop = True
                return None
        try:
            return super()._run_epoch(*args, **options)
        finally:
            if self._steps is not None:
                self._steps.close()
            self._steps = None
            if self._stream is not None:
                self._stream.close()

    def _pay_evaluation(self, ignore_keys: list[str] | None = None) -> None:
        """Makes the evaluation that the run before left out, because it was to stop."""
        if not self.requests.owes_evaluation or self.eval_dataset is None:
            return
        try:
            with self.requests.cutting():
                metrics = self._evaluate(None, ignore_keys)
        except EvaluationCut:
            self.control.should_save = False  # the checkpoint that owes it is there
            return
        self._determine_best_metric(metrics, None)
        name_best(self, Path(self.args.output_dir))

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        if self.control.should_evaluate and self.eval_dataset is None:
            self.control.should_evaluate = False
            if not self._has_told_of_evaluation:
                self._has_told_of_evaluation = True
                console.warn(
                    "a callback asks for an evaluation, and there are no rows to evaluate: name "
                    "them by eval_dataset, or set val_size. Training goes on without."
                )
        try:
            with self.requests.cutting():
                super()._maybe_log_save_evaluate(*args, **options)
        except EvaluationCut:
            super()._maybe_log_save_evaluate(*args, **options)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        if not self._is_restored:  # no epoch was left
            self._is_restored = True
            self._restore(self.state.stateful_callbacks or {})
            self._pay_evaluation()
        if self.requests.is_stopping:
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            self.requests.raise_stopped(self.state)
        self._tr_loss = self.accelerator.reduce(self._tr_loss, "mean")
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _restore(self, saved: dict[str, Any]) -> None:
        """Takes up the loss since the last log, and the counters of callbacks that export them.

        The library saves both kinds of state at most, and begins anew: the next logged loss would
        be the mean of fewer steps, and patience with a run that gets no better would be full again.
        """
        self.requests.owes_evaluation = owes_evaluation(self.state)
        for callback in self.callback_handler.callbacks:
            state = saved.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and isinstance(state, dict):
                for name, value in state["attributes"].items():
                    setattr(callback, name, value)
        ours = saved.get(STATE_ENTRY, {}).get("attributes")
        if self._stream is not None:
            is_new = ours is None or self.args.ignore_data_skip
            self._num_streamed = 0
            self._stream.start(None if is_new else ours.get("stream"))
        if ours is None:
            self._num_steps_unheard = self.state.global_step
            return
        losses = ours["loss_since_log"]
        is_as_before = len(losses) == self.args.world_size
        mean = math.fsum(losses) / len(losses)
        self._tr_loss += losses[self.args.process_index] if is_as_before else mean
        self._total_loss_scalar += ours["total_loss"]
        if self.args.process_index == 0:  # they are the sums of all ranks
            kept = ours.get("metrics_since_log", {})
            self._metrics.add({name: (total, count) for name, (total, count) in kept.items()})
        self._globalstep_last_logged = ours["last_logged_step"]
        self.numbers.restore(ours["numbers"])
        self.memory.restore(ours["token_limits"])

    # Evaluation

    def evaluation_loop(
        self,
        dataloader: StepLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Means over all units of the set, so that no number depends on the batch size."""
        model = self._evaluation_model()
        sums = MetricSums(("loss", *self.stage.eval_metrics))

        def evaluate(micro_batch: MicroBatch) -> Loss:
            with torch.no_grad():
                return self._micro_loss(model, micro_batch)

        num_units = num_examples = 0
        self.callback_handler.eval_dataloader = dataloader
        for step in Ahead(dataloader):
            num_units += step.num_units
            num_examples += step.num_examples
            for loss in self.evaluation_memory.each(step, evaluate):
                sums.add({"loss": (loss.total, 0), **loss.metrics})
                self.control = self.callback_handler.on_prediction_step(
                    self.args, self.state, self.control
                )
        if self.args.process_index == 0:  # units are those of all ranks
            sums.add({"loss": (torch.zeros(()), max(num_units, 1))})
        means = sums.means()
        metrics = {
            f"{metric_key_prefix}_{name}": value
            for name, value in (means | self.stage.derive(means)).items()
        }
        return EvalLoopOutput(None, None, metrics, num_examples)

    def _evaluation_model(self) -> Any:
        if self.is_deepspeed_enabled:
            deepspeed.gather_to_evaluate(self)
        elif not self.accelerator._models:
            self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        if not self.is_in_train and (self.args.bf16_full_eval or self.args.fp16_full_eval):
            dtype = torch.bfloat16 if self.args.bf16_full_eval else torch.float16
            self.model.to(device=self.args.device, dtype=dtype)
        self.model.eval()
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()
        return self.model

    def _evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        with self._meter.paused():
            metrics: dict[str, float] = super()._evaluate(*args, **options)
        return metrics

    # Files and logs

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert self.state.stateful_callbacks is not None
        refuse_nonfinite(self.model, self.state.global_step)
        self.state.stateful_callbacks[STATE_ENTRY] = {
            "args": {},
            "attributes": {
                HAS_MANIFEST: True,
                "token_limits": gather_objects(self.memory.tokens),
                OWED: self.requests.owes_evaluation,
                "numbers": self.numbers.state(),
                "loss_since_log": gather_objects(self._tr_loss.item()),
                "metrics_since_log": self._metrics.state() if self.stage.train_metrics else {},
                "total_loss": self._total_loss_scalar,
                "last_logged_step": self._globalstep_last_logged,
                "stream": self._stream and self._stream.state_behind(self._num_streamed),
            },
        }
        self.tell_of_stream()
        with self._meter.paused():
            self.saver.save()

    @cached_property
    def saver(self) -> CheckpointSaver:
        """Writes the checkpoints and the model at the end."""
        if self.identity is None:
            strategy = find_strategy(self.arguments, self.args)
            self.identity = fingerprint_run(self.arguments, strategy, self.args.world_size)
        return CheckpointSaver(self, self.identity)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model to a folder; to that of the run so that half a one is never met."""
        if output_dir is not None and Path(output_dir) != Path(self.args.output_dir):
            super().save_model(output_dir, _internal_call)
            return
        refuse_nonfinite(self.model, self.state.global_step)
        self.saver.save_model(lambda stage: self.save_model(stage, True), why_over(self))

    def save_state(self) -> None:
        """Writes trainer_state.json to the run's folder, whole."""
        if self.is_world_process_zero():
            text = json.dumps(dataclasses.asdict(self.state), indent=2, sort_keys=True)
            write_whole(Path(self.args.output_dir) / STATE, [text, "\n"])

    def tell_of_stream(self) -> None:
        """Says what became of the rows that were streamed so far."""
        for line in self._stream.lines() if self._stream is not None else ():
            console.info(line)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Weights, configuration and tokenizer; no pickled training arguments."""
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            self._pretrained.write(self.model, self.processing_class, Path(folder), state_dict)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds tokens, tokens per second and utilisation to the lines of training.

        The mean loss at the end is that of all steps, those before a resume included.
        """
        if "loss" in logs:
            if self.stage.train_metrics:
                logs |= self._metrics.means()
                self._metrics = MetricSums(self.stage.train_metrics)
            with self._meter.paused():  # a CPU's peak is measured the first time
                peak = None if self._step_flops is None else self._peak_flops
            # those of all ranks, which have just been added up
            flops = (self.state.total_flos - self._flops_until_log) / self.args.world_size
            self._flops_until_log = self.state.total_flos
            self._meter.count(0, flops)
            speed = self._meter.read()
            logs["tokens_per_second"] = round(speed.tokens, 1)
            if peak is not None:
                logs["mfu"] = round(speed.flops / peak, 4)
            logs["total_tokens"] = self.state.num_input_tokens_seen
        if "train_loss" in logs:  # the library divides by the steps of this process alone
            num_steps = max(self.state.global_step - self._num_steps_unheard, 1)
            logs["train_loss"] = self._total_loss_scalar / num_steps
        super().log(logs)

    def announce_prediction(self, metrics: dict[str, float]) -> None:
        """Tells the callbacks that predictions were made."""
        self.control = self.callback_handler.on_predict(
            self.args, self.state, self.control, metrics
        )
