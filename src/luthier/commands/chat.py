"""luthier chat: talk to a model on the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier import console
from luthier.arguments.files import is_config
from luthier.arguments.parse import Check, parse_command_line
from luthier.arguments.record import Arguments
from luthier.arguments.rules import Purpose
from luthier.errors import MissingArguments

SUMMARY = "talk to a model, or to what a run trained"

USAGE = """\
usage: luthier chat RUN_FOLDER [name=value ...]
       luthier chat CONFIG.yaml [name=value ...]
       luthier chat --model_name_or_path MODEL [--adapter_name_or_path ADAPTER] [--template NAME]

RUN_FOLDER is the output_dir of a finished run, or a checkpoint in it: base model, adapter and
template are those of the run. CONFIG.yaml may be a training configuration; it means the model it
names, with the adapter it names. Settings of generation such as temperature=0.7,
max_new_tokens=200 or do_sample=false may follow; default_system sets the system prompt.

Lines from a pipe are answered one by one: echo "Who are you?" | luthier chat RUN_FOLDER"""


def run(argv: list[str]) -> int:
    """Loads the model that the words name and talks until the user leaves."""
    from luthier.training.preflight import find_problems_of_a_chat

    arguments = read_arguments(argv, check=find_problems_of_a_chat)
    _mention_trained(arguments)

    from luthier.serving.chat import chat
    from luthier.serving.engine import load_engine

    chat(load_engine(arguments))
    return 0


def read_arguments(
    argv: list[str],
    *,
    check: Check | None = None,
    purpose: Purpose = "chat",
    absent: str = f"luthier chat needs to know which model to talk to.\n{USAGE}",
) -> Arguments:
    """What to load, and what to do with it; a folder in the first place stands for its run.

    `absent` is said where there are no words.
    """
    if not argv:
        raise MissingArguments([absent])
    words = list(argv)
    folder = Path(words[0]).expanduser()
    if folder.is_dir() or not (is_config(words[0]) or "=" in words[0] or words[0].startswith("-")):
        from luthier.serving.run_folder import arguments_of

        words[:1] = as_words(arguments_of(folder))
    return parse_command_line(words, purpose=purpose, check=check, look_for_args_file=False)


def as_words(values: Mapping[str, Any]) -> Iterator[str]:
    """Arguments as words of a command line."""
    for name, value in values.items():
        if value is not None:
            yield f"{name}={value if isinstance(value, str) else json.dumps(value)}"


def _mention_trained(arguments: Arguments) -> None:
    folder = arguments.training.output_dir
    if (
        arguments.given("output_dir")
        and not arguments.model.adapter_name_or_path
        and (Path(str(folder)) / "adapter_config.json").exists()
    ):
        console.info(f"this is the untrained model; `luthier chat {folder}` talks to the trained")
