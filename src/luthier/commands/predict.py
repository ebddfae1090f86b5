"""luthier predict: answers of a model to the prompts of a data set, and how good they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from luthier.errors import ArgumentsError, MissingArguments

SUMMARY = "answer the prompts of a data set with what a run trained, and score the answers"

USAGE = """\
usage: luthier predict RUN_FOLDER [eval_dataset=ROWS] [--limit N] [name=value ...]
       luthier predict CONFIG.yaml [name=value ...]

RUN_FOLDER is the output_dir of a finished run, or a checkpoint in it. Without eval_dataset the rows
that the run held out are answered; ROWS is a file of conversations or prompts, or a name of
dataset_info.json. A CONFIG.yaml that trains stands for what it has trained.

generated_predictions.jsonl in output_dir, by default RUN_FOLDER/predictions, has a line for each
row: prompt, predict and label. Answers are kept as they get done: killed and started again, the
same command goes on behind them. Settings of generation such as do_sample=false or
num_return_sequences=4 may follow, and metric=MODULE:FUNCTION scores by a function of your own."""


def run(argv: list[str]) -> int:
    """Answers the rows that the words name."""
    if not argv:
        raise MissingArguments([f"luthier predict needs a run's folder or a CONFIG.yaml.\n{USAGE}"])
    from luthier.arguments.parse import parse_command_line
    from luthier.processes.launcher import (
        end_with_parent,
        find_launch,
        secrets_from_environment,
        start,
    )
    from luthier.training.preflight import find_problems

    end_with_parent()
    argv = secrets_from_environment(argv)
    arguments = parse_command_line([*_words(argv)], check=find_problems, look_for_args_file=False)
    launch = find_launch(arguments)
    if launch is not None:
        return start(launch, ["predict", *argv])
    from luthier.training.run import run as run_prediction

    run_prediction(arguments, owns_process=True)
    return 0


def _words(argv: list[str]) -> Iterator[str]:
    """The words as `luthier train` takes them; what the user says comes last, and wins."""
    from luthier.arguments.files import is_config, read_config
    from luthier.commands.chat import as_words
    from luthier.serving.run_folder import arguments_of

    first, others = argv[0], argv[1:]
    folder = Path(first).expanduser()
    if not folder.is_dir() and is_config(first):
        config = {each.name: each.value for each in read_config(first)[0]}
        if config.get("do_train") is True:
            folder = Path(str(config.get("output_dir"))).expanduser()
            if not folder.is_dir():
                raise ArgumentsError(
                    [f"{first} trains, and {folder} holds nothing yet: luthier train {first} first"]
                )
    stage = "sft"
    if folder.is_dir():
        values = arguments_of(folder)
        values["output_dir"] = str(folder / "predictions")
        stage = values.get("stage", stage)
        yield from as_words(values)
        yield from ("deepspeed=null", "fsdp=false", "fsdp_config=null")  # how it was trained
    else:
        yield first
    yield from ("do_train=false", "do_eval=false", "do_predict=true")
    yield from ("eval_strategy=no", "eval_generate_samples=0")
    if stage != "rm":  # whose answers are there, and are scored
        yield "predict_with_generate=true"
    if any(word.lstrip("-").startswith("eval_dataset") for word in others):
        yield from ("dataset=null", "val_size=0")
    yield from others
