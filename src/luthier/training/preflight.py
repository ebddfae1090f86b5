"""What can be known to fail before anything slow is imported or loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from luthier.arguments.record import Arguments
from luthier.data.catalog import check_datasets, metric_names
from luthier.errors import TemplateError, UnknownName
from luthier.modeling.source import check_model, check_tokenizer
from luthier.optional import is_installed, missing
from luthier.templates.choose import find_template
from luthier.training.checkpoint import (
    find_checkpoint,
    last_checkpoint,
    saved_entry,
    settings_of_checkpoint,
)
from luthier.training.strategies import deepspeed_config, fsdp_config

TRACKER_MODULES = {
    "clearml": "clearml",
    "comet_ml": "comet_ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""Values of `report_to` -> the package each needs."""

OPTIMIZER_MODULES = {
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_npu_fused": "torch_npu",
    "adamw_torch_xla": "torch_xla",
    "grokadamw": "grokadamw",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "stable_adamw": "optimi",
    "schedule_free_adamw": "schedulefree",
    "schedule_free_radam": "schedulefree",
    "schedule_free_sgd": "schedulefree",
}
"""Values of `optim` -> the package each needs, beside those of bitsandbytes."""

OF_BITSANDBYTES = re.compile(r"(paged_|lion_|ademamix)|_bnb|^adamw_8bit$")

OUTPUT_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


def find_problems(arguments: Arguments) -> list[str]:
    """What files, names, packages and the output folder say against a run."""
    return [problem for check in CHECKS for problem in check(arguments)]


def find_problems_of_a_chat(arguments: Arguments) -> list[str]:
    """The same for a chat, which reads the model and the template only."""
    return [*_model(arguments), *_template(arguments)]


def find_problems_of_the_data(arguments: Arguments) -> list[str]:
    """The same for a look at the data, which reads no weights and perhaps no tokenizer."""
    problems = [*_data(arguments), *_template(arguments)]
    if arguments.model.model_name_or_path:
        problems += check_tokenizer(arguments.model)
    return problems


def _model(arguments: Arguments) -> Iterator[str]:
    yield from check_model(arguments.model)


def _data(arguments: Arguments) -> Iterator[str]:
    yield from check_datasets(arguments.data)


def _template(arguments: Arguments) -> Iterator[str]:
    if arguments.data.template is not None:
        try:
            find_template(arguments.data.template)
        except (UnknownName, TemplateError) as problem:
            yield str(problem)


def _packages(arguments: Arguments) -> Iterator[str]:
    for tracker in arguments.training.report_to:
        module = TRACKER_MODULES.get(tracker)
        if module is not None and not is_installed(module):
            yield missing(module, f"report_to: {tracker}")
    optimizer = str(arguments.training.optim)
    module = OPTIMIZER_MODULES.get(optimizer)
    if module is None and OF_BITSANDBYTES.search(optimizer):
        module = "bitsandbytes"
    if arguments.training.do_train and module is not None and not is_installed(module):
        yield missing(module, f"optim: {optimizer}")
    if arguments.training.predict_with_generate:
        for module in ("nltk", "jieba", "rouge_chinese"):
            if not is_installed(module):
                yield missing(module, "predict_with_generate")


def _best_metric(arguments: Arguments) -> Iterator[str]:
    data, training = arguments.data, arguments.training
    metric = training.metric_for_best_model
    if not training.do_train or training.eval_strategy == "no" or metric is None:
        return
    finetuning = arguments.finetuning
    values = ["loss"]
    values += ["accuracy"] if finetuning.compute_accuracy else []
    values += ["perplexity"] if finetuning.stage == "pt" else []
    if data.eval_dataset and data.eval_on_each_dataset:
        values = [f"{name}_{value}" for name in metric_names(data.eval_dataset) for value in values]
    if metric.removeprefix("eval_") not in values:
        yield (
            f"metric_for_best_model: {metric!r} is not computed by the evaluations of this run. "
            f"Choose from: {', '.join(values)}."
        )


def _output_folder(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    if training.output_dir is None:
        return
    folder = Path(training.output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        yield f"output_dir: {folder} is a file. Name a folder; it is made when absent."
    if not training.do_train or training.overwrite_output_dir or not folder.is_dir():
        return
    if training.resume_from_checkpoint is None and last_checkpoint(folder) is None:
        found = [name for name in OUTPUT_WEIGHTS if (folder / name).exists()]
        if found:
            yield (
                f"output_dir: {folder} holds a finished model ({found[0]}) and no checkpoint to "
                "go on from. Name another folder, or set overwrite_output_dir: true."
            )


def _checkpoint(arguments: Arguments) -> Iterator[str]:
    asked = arguments.training.resume_from_checkpoint
    if asked is None:
        return
    if asked.lower() in ("true", "false"):
        yield (
            f"resume_from_checkpoint: {asked!r} is not a folder. Leave it out to go on from the "
            "newest checkpoint in output_dir, or name a checkpoint-N folder."
        )
    elif not (Path(asked).expanduser() / "trainer_state.json").is_file():
        yield (
            f"resume_from_checkpoint: {asked} has no trainer_state.json, so it is no checkpoint. "
            "Name a checkpoint-N folder."
        )


def _checkpoint_settings(arguments: Arguments) -> Iterator[str]:
    checkpoint = find_checkpoint(arguments) if arguments.training.do_train else None
    if checkpoint is None or not (checkpoint / "trainer_state.json").is_file():
        return
    before = saved_entry(checkpoint).get("settings", {})
    for name, value in settings_of_checkpoint(arguments).items():
        if name in before and before[name] != value:
            yield (
                f"{name}: {checkpoint} was made with {before[name]!r}, and this run says "
                f"{value!r}. Set it back to go on, or overwrite_output_dir: true (or another "
                "output_dir) for a new run."
            )


CHECKS: tuple[Callable[[Arguments], Iterator[str]], ...] = (
    _model,
    _data,
    _template,
    _packages,
    _best_metric,
    _output_folder,
    _checkpoint,
    _checkpoint_settings,
    deepspeed_config.find_problems,
    fsdp_config.find_problems,
)
