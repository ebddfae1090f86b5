"""A configuration -> a trained, evaluated, predicting model on disk: the story, start to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.arguments.choices import ADAPTERS
from luthier.arguments.record import Arguments
from luthier.checkpoints.output_folder import OutputFolder, announce
from luthier.collector import resting_collector
from luthier.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback
    from transformers import TrainingArguments as LibraryArguments

    from luthier.data.pipeline import EncodedDatasets
    from luthier.distributed.strategy import Strategy
    from luthier.stages.stage import Stage
    from luthier.training.loop import Trainer


@dataclass(frozen=True)
class RunResult:
    """What a run gives back to Python."""

    output_dir: Path  # the folder with everything that was written
    metrics: dict[str, float] = field(repr=False)
    """All numbers of training, evaluation and prediction, as in all_results.json."""
    log_history: list[dict[str, float]] = field(repr=False)
    """One record for each logged line, as in trainer_state.json."""
    model: Any = field(repr=False)  # the trained model


def run(
    arguments: Arguments,
    callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = (),
    *,
    owns_process: bool = False,
) -> RunResult:
    """Trains, evaluates and predicts as the arguments say.

    They are parsed with `check=find_problems` of preflight, so that what can be known to fail
    before anything is loaded was found together with their own mistakes. With `owns_process` a
    second signal to stop may end the process at once.

    Raises:
        Stopped: when the run was asked to stop, and did.
        LuthierError: for what a user can mend and only loading shows.
    """
    for note in arguments.notes:
        console.info(note)

    with resting_collector():
        from transformers import set_seed
        from transformers.utils.logging import disable_progress_bar

        from luthier.checkpoints.fingerprint import fingerprint_run
        from luthier.checkpoints.saver import CheckpointSaver
        from luthier.data.pipeline import load_datasets
        from luthier.distributed.accelerator import find_strategy
        from luthier.distributed.fsdp import with_sharding
        from luthier.modeling.dtypes import without_emulation
        from luthier.modeling.loader import load_model
        from luthier.modeling.memory import choose_checkpointing
        from luthier.modeling.reference import load_other
        from luthier.modeling.safe_loading import reading_plain_data
        from luthier.modeling.tokenizer import load_tokenizer
        from luthier.processes.process_group import (
            check_group,
            check_launch,
            join_group,
            leaving_group,
        )
        from luthier.processes.watchdog import Watchdog
        from luthier.stages.stage import STAGES
        from luthier.templates.fit import find_other_ids, fit_chat_template
        from luthier.templates.template import Template
        from luthier.training.callbacks.samples import SampleCallback
        from luthier.training.callbacks.trackers import own_runs
        from luthier.training.encoder import fit_template
        from luthier.training.layout import switch_dropout_off
        from luthier.training.precompute import settle_reference
        from luthier.training.report import save_metrics, write_model_card, write_run_record
        from luthier.training.to_training_arguments import to_training_arguments

    output = OutputFolder(arguments)
    disable_progress_bar()
    with (
        reading_plain_data(),
        output.locked(),
        leaving_group(owns_process=owns_process),
        Watchdog() as watchdog,
        own_runs(arguments.training),
    ):
        check_launch(arguments)
        asked, arguments = arguments, without_emulation(arguments)
        training = arguments.training
        set_seed(training.seed)
        stage = STAGES.get(arguments.finetuning.stage)(arguments)
        tokenizer = load_tokenizer(arguments.model, min_length=arguments.data.cutoff_len)
        template, fitted = fit_template(arguments, tokenizer)
        for note in fitted.notes:
            console.info(note)
        stage.fit(tokenizer, template)
        data = load_datasets(arguments, stage)
        if isinstance(template, Template):
            notes = fit_chat_template(tokenizer, template, data.report.kinds())
            for note in filter(None, (notes, find_other_ids(tokenizer, template))):
                console.info(note)
        if (training.do_eval or training.eval_on_start) and not data.eval:
            raise DataError(
                "do_eval: no row of the evaluation data has an answer to take a loss on. Take "
                "do_eval, eval_strategy and eval_on_start away; do_predict alone answers such rows."
            )
        if data.train is not None:
            stage.look(data.train)
        # from here on processes wait for each other, and no longer than ddp_timeout
        here = join_group(arguments)
        library = to_training_arguments(arguments)
        check_group(here, library)
        arguments = with_sharding(arguments, library)
        callbacks = [*callbacks, *watchdog.begin(arguments)]
        strategy = find_strategy(library)
        identity = fingerprint_run(asked, strategy, library.world_size, data.train)
        checkpoint = None
        if training.do_train:
            checkpoint, identity = output.resume(identity)
        model = load_model(
            arguments,
            tokenizer,
            is_trainable=training.do_train,
            scores=stage.scores,
            checkpoint=checkpoint,
        )
        if not stage.draws_dropout and training.do_train:
            switch_dropout_off(model)
        if training.do_train and training.eval_generate_samples:
            callbacks.append(
                SampleCallback(arguments, tokenizer, data.predict, fitted.stop_token_ids)
            )
        trainer = _make_trainer(
            arguments, library, stage, strategy, model, tokenizer, data, callbacks
        )
        trainer.saver = CheckpointSaver(trainer, identity)
        arguments = strategy.place(trainer)
        if training.do_train or training.do_eval:
            other = load_other(arguments, tokenizer) if stage.needs_reference else None
            _choose_layout(trainer, arguments, data, other)
            if stage.needs_reference:
                settle_reference(trainer, arguments, other)
        if training.do_train:
            num_tokens, longest = trainer.loaders.largest_micro_batch(trainer.train_dataset)
            choose_checkpointing(
                trainer.model,
                arguments,
                num_tokens=num_tokens,
                longest=longest,
                is_padded=trainer.loaders.layout == "padded",
                autocast=trainer.accelerator.autocast,
            )

        folder = Path(trainer.args.output_dir)
        noted = replace(asked, notes=arguments.notes)
        write_run_record(folder, noted, data.report, _engine(trainer))
        metrics: dict[str, float] = {}
        if training.do_train:
            with trainer.requests.listening(
                folder, owns_process=owns_process, heard=watchdog.hurry
            ):
                metrics |= _train(trainer, arguments, checkpoint)
                trainer.requests.raise_if_asked(trainer.state)
            if arguments.finetuning.plot_loss and console.is_main_process():
                from luthier.training.plots import curve_names, write_plots

                sets = data.eval if training.eval_strategy != "no" else ()
                names = curve_names(stage, sets)
                write_plots(folder, trainer.state.log_history, names)
        if training.do_eval:
            evaluated = trainer.evaluate()
            save_metrics(folder, "eval", evaluated)
            metrics |= evaluated
        asks = training.predict_with_generate or stage.scores
        if stage.predicts and asks and (training.do_predict or training.do_eval):
            metrics |= _predict(trainer, data, arguments, fitted.stop_token_ids)
        write_model_card(folder, arguments, metrics, trainer.state.log_history, scores=stage.scores)
        if training.push_to_hub and training.do_train:
            trainer.saver.hub.push_model("Model save")
        return RunResult(folder, metrics, trainer.state.log_history, trainer.model)


def _make_trainer(
    arguments: Arguments,
    library_arguments: LibraryArguments,
    stage: Stage,
    strategy: Strategy,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: EncodedDatasets,
    callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
) -> Trainer:
    from transformers import EarlyStoppingCallback

    from luthier.distributed.accelerator import make_accelerator
    from luthier.modeling.counts import count_flops, peak_flops
    from luthier.modeling.dtypes import computed_dtype
    from luthier.suggestions import suggest
    from luthier.training.callbacks.log_file import LogFileCallback
    from luthier.training.callbacks.progress import ProgressCallback
    from luthier.training.callbacks.requests import Requests
    from luthier.training.callbacks.trackers import settle_trackers
    from luthier.training.loop import Trainer
    from luthier.training.metrics import Meter
    from luthier.training.optimizers.make import make_optimizer, make_schedule

    def meter_of(trainer: Trainer) -> Meter:
        def peak() -> float | None:
            dtype = computed_dtype(trainer.accelerator.mixed_precision, trainer.model)
            return peak_flops(trainer.args.device, dtype)

        return Meter(lambda: count_flops(trainer.model), peak)

    metrics = (*stage.train_metrics, *stage.eval_metrics)
    ours: list[TrainerCallback | type[TrainerCallback]] = [LogFileCallback(metrics)]
    if not arguments.training.disable_tqdm:
        ours.append(ProgressCallback)
    patience = arguments.finetuning.early_stopping_steps
    if patience is not None:
        ours.append(EarlyStoppingCallback(early_stopping_patience=patience))
    trainer = Trainer(
        arguments,
        library_arguments,
        stage,
        strategy,
        make_accelerator(library_arguments),
        model,
        tokenizer,
        data.train,
        data.eval,
        [*callbacks, *ours],
        requests=Requests(arguments.training.stop_grace_seconds),
        optimizer=lambda model: make_optimizer(model, arguments, library_arguments),
        schedule=partial(make_schedule, arguments=arguments, args=library_arguments),
        suggest=suggest,
        meter=meter_of,
    )
    settle_trackers(trainer.callback_handler.callbacks)
    return trainer


def _engine(trainer: Trainer) -> dict[str, Any]:
    """What was chosen for a run, as run.json holds it; callbacks are told of recomputation."""
    from luthier.modeling.dtypes import held_dtypes
    from luthier.modeling.memory import recomputes_activations

    args, loaders, model = trainer.args, trainer.loaders, trainer.model
    is_recomputed = recomputes_activations(model)
    args.gradient_checkpointing = args.activation_checkpointing = is_recomputed
    return {
        "weights": held_dtypes(model),
        "layout": loaders.layout,
        "shares_prefixes": loaders.shares_prefixes,
        "tokens_per_micro_batch": loaders.token_budget(
            trainer.arguments.training.per_device_train_batch_size
        ),
        "gradient_checkpointing": is_recomputed,
    }


def _choose_layout(
    trainer: Trainer, arguments: Arguments, data: EncodedDatasets, other: Any = None
) -> None:
    from luthier.fused.fuse import fuse, unfuse
    from luthier.modeling.dtypes import computed_dtype
    from luthier.training.layout import PROBE_ROWS, Layout, choose_layout

    rows = data.train if data.train is not None else next(iter(data.eval.values()))

    def choose(model: Any, arguments: Arguments) -> Layout:
        return choose_layout(
            model,
            arguments,
            rows.take(PROBE_ROWS),
            trainer.processing_class.pad_token_id,
            fuse=fuse,
            unfuse=unfuse,
            autocast=trainer.accelerator.autocast,
            dtype=computed_dtype(trainer.accelerator.mixed_precision, model),
        )

    layout = choose(trainer.model, arguments)
    if other is not None:  # both compute the same micro-batches
        asked = "padded" if layout.name == "padded" else arguments.training.layout
        theirs = choose(other, arguments.changed(layout=asked))
        if theirs.name != layout.name:
            layout = choose(trainer.model, arguments.changed(layout=theirs.name))
        layout = replace(layout, shares_prefixes=layout.shares_prefixes and theirs.shares_prefixes)
    trainer.take(layout)


def _train(trainer: Trainer, arguments: Arguments, checkpoint: Path | None) -> dict[str, float]:
    from luthier.modeling.safe_loading import refusing_code
    from luthier.training.finalize import take_up_end, take_up_finished, what_is_left
    from luthier.training.report import save_metrics

    folder = Path(trainer.args.output_dir)
    left = "steps" if checkpoint is None else what_is_left(trainer, checkpoint)
    if left == "nothing":
        return take_up_finished(trainer)
    metrics: dict[str, float]
    if checkpoint is not None and left == "model":
        metrics = take_up_end(trainer, checkpoint)
    else:
        if checkpoint is not None:
            announce(checkpoint)
            trainer.saver.last_published = checkpoint
        with refusing_code(checkpoint):
            metrics = trainer.train(None if checkpoint is None else str(checkpoint)).metrics
    trainer.saver.save_state()
    trainer.save_model()
    finish = ADAPTERS.get(arguments.finetuning.finetuning_type).finish
    if trainer.is_world_process_zero() and finish is not None:
        finish(trainer.model, arguments, folder)
    if left == "model":
        save_metrics(folder, "train", metrics)
        return metrics
    trainer.tell_of_stream()
    work = trainer.work.of_all_ranks()
    console.info(work.describe(trainer.loaders.layout))
    metrics |= work.metrics() | trainer.guard.metrics()
    if arguments.finetuning.include_effective_tokens_per_second:
        metrics["effective_tokens_per_sec"] = work.tokens / metrics["train_runtime"]
    save_metrics(folder, "train", metrics)
    return metrics


def _predict(
    trainer: Trainer,
    data: EncodedDatasets,
    arguments: Arguments,
    stop_token_ids: Sequence[int],
) -> dict[str, float]:
    from luthier.training.predict import predict_scores, predict_with_generate
    from luthier.training.report import save_metrics

    if trainer.stage.scores:
        metrics = predict_scores(Path(trainer.args.output_dir), data.predict, trainer.score)
    else:
        metrics = predict_with_generate(
            Path(trainer.args.output_dir),
            trainer.model,
            trainer.processing_class,
            data.predict,
            arguments,
            stop_token_ids,
        )
    save_metrics(Path(trainer.args.output_dir), "predict", metrics)
    trainer.callback_handler.on_predict(trainer.args, trainer.state, trainer.control, metrics)
    return metrics
