"""What can be known to fail before anything slow is imported or loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from luthier.arguments.choices import ADAPTERS, OPTIMIZERS
from luthier.arguments.record import SECTIONS, Arguments, facts
from luthier.checkpoints.output_folder import OutputFolder
from luthier.data.catalog import check_datasets, metric_names
from luthier.distributed import deepspeed_config, fsdp_config
from luthier.distributed.deepspeed_config import read_config, stage_of
from luthier.errors import ArgumentsError, UnknownName
from luthier.modeling.source import check_model, check_tokenizer
from luthier.optional import is_installed, missing
from luthier.processes.environment import distributed_environment
from luthier.records import Conversation
from luthier.stages.stage import STAGES
from luthier.templates.fit import find_template


def find_problems(arguments: Arguments) -> list[str]:
    """What files, names, packages and the output folder say against a run.

    Checkpoints, which take the longest to read, are looked at when all else is well.
    """
    problems = [problem for check in CHECKS for problem in check(arguments)]
    return problems or list(OutputFolder(arguments).checkpoint_problems())


def find_problems_of_a_chat(arguments: Arguments) -> list[str]:
    """The same for a chat, which reads the model and the template only."""
    return [*check_model(arguments.model), *_template(arguments), *_packages(arguments, "model")]


def find_problems_of_an_export(arguments: Arguments) -> list[str]:
    """The same for an export, which needs what writes its files, too."""
    return [*find_problems_of_a_chat(arguments), *_packages(arguments, "exporting")]


def find_problems_of_the_data(arguments: Arguments) -> list[str]:
    """The same for a look at the data, which reads no weights and perhaps no tokenizer."""
    problems = [*_data(arguments), *_answers(arguments), *_template(arguments)]
    if arguments.model.model_name_or_path:
        problems += check_tokenizer(arguments.model)
    return problems


def _data(arguments: Arguments) -> Iterator[str]:
    stage = arguments.finetuning.stage
    if stage not in STAGES:
        yield from check_datasets(arguments.data, Conversation)
        return
    kind = STAGES.get(stage)
    predicted = kind.predicted if kind(arguments).predicts else ()
    yield from check_datasets(arguments.data, kind.record, predicted)


def _answers(arguments: Arguments) -> Iterator[str]:
    stage = arguments.finetuning.stage
    if stage in STAGES and STAGES.get(stage).judges and arguments.data.on_overlong == "split":
        yield (
            f"on_overlong: split makes several examples of a long row, and stage: {stage} learns "
            "from answers as they are; truncate cuts the prompt and both answers alike, drop "
            "leaves such rows out."
        )


def _template(arguments: Arguments) -> Iterator[str]:
    if arguments.data.template is not None:
        try:
            find_template(arguments.data.template)
        except UnknownName as problem:
            yield str(problem)


def _packages(arguments: Arguments, section: str = "") -> Iterator[str]:
    """Packages that values need, those of one section or all, and what `optim` names."""
    known = SECTIONS[section].model_fields if section else facts()
    values, training = arguments.flat(), arguments.training
    needed = [each for name in known for each in facts()[name].needed(name, values[name])]
    if training.do_train and not section:
        needed.append((f"optim: {training.optim}", OPTIMIZERS.get(training.optim).needs))
    for said, package in needed:
        if package and not is_installed(package):
            yield missing(package, said)


def _metric(arguments: Arguments) -> Iterator[str]:
    if arguments.training.metric is not None and arguments.training.predict_with_generate:
        from luthier.training.scores import find_metric

        try:
            find_metric(arguments.training.metric)
        except ArgumentsError as problem:
            yield from problem.problems


def _parts(arguments: Arguments) -> Iterator[str]:
    """What cannot be done on weights, gradients or states that lie in parts."""
    training, method = arguments.training, arguments.finetuning.finetuning_type
    try:
        config = {} if training.deepspeed is None else read_config(training.deepspeed)
    except ArgumentsError:
        return  # DeepSpeed's own check tells
    how = "fsdp" if training.fsdp else "deepspeed" if stage_of(config) else ""
    if training.do_train and how:
        for said, entry in (
            (f"optim: {training.optim}", OPTIMIZERS.get(training.optim)),
            (f"finetuning_type: {method}", ADAPTERS.get(method) if method in ADAPTERS else None),
        ):
            if entry is not None and not entry.is_sharded:
                yield (
                    f"{said} works on whole weights, and {how} holds what it needs in parts. "
                    f"Choose another, or leave {how} out."
                )


def _best_metric(arguments: Arguments) -> Iterator[str]:
    data, training = arguments.data, arguments.training
    metric = training.metric_for_best_model
    if not training.do_train or training.eval_strategy == "no" or metric is None:
        return
    if arguments.finetuning.stage not in STAGES:
        return
    stage = STAGES.get(arguments.finetuning.stage)(arguments)
    values = ["loss", *stage.eval_metrics, *stage.derived_metrics]
    if data.eval_dataset and data.eval_on_each_dataset:
        values = [f"{name}_{value}" for name in metric_names(data.eval_dataset) for value in values]
    if metric.removeprefix("eval_") not in values:
        yield (
            f"metric_for_best_model: {metric!r} is not computed by the evaluations of this run. "
            f"Choose from: {', '.join(values)}."
        )


def _rows_of_a_step(arguments: Arguments) -> Iterator[str]:
    """A stage that holds rows of a step against each other needs several."""
    training, stage = arguments.training, arguments.finetuning.stage
    if stage not in STAGES or not training.do_train:
        return
    per_rank = training.per_device_train_batch_size * training.gradient_accumulation_steps
    is_one = per_rank * distributed_environment().world_size == 1
    if is_one and STAGES.get(stage)(arguments).mismatches_answers:
        yield (
            f"gradient_accumulation_steps: a step has one row, and stage: {stage} puts each prompt "
            "before another row's answer to see how far the model has moved. Set it, or "
            "per_device_train_batch_size, to 2 or more; 8 rows and more are usual."
        )


CHECKS: tuple[Callable[[Arguments], Iterator[str]], ...] = (
    lambda arguments: check_model(arguments.model),
    _data,
    _answers,
    _template,
    _packages,
    _metric,
    _parts,
    _best_metric,
    _rows_of_a_step,
    lambda arguments: OutputFolder(arguments).problems(),
    deepspeed_config.find_problems,
    fsdp_config.find_problems,
)
