"""luthier api: serve models to clients of OpenAI's API."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier import console
from luthier.arguments.files import is_config
from luthier.arguments.record import Arguments
from luthier.arguments.serving import VARIABLES, ServingArguments
from luthier.commands.chat import read_arguments
from luthier.errors import ArgumentsError, MissingArguments
from luthier.optional import need

SUMMARY = "serve models to clients of OpenAI's API: luthier api RUN_FOLDER ..."

USAGE = """\
usage: luthier api RUN_FOLDER [name=value ...]
       luthier api RUN_A RUN_B ... [name=value ...]
       luthier api CONFIG.yaml [name=value ...]

Serves what a run trained, or the model that a configuration names, at http://127.0.0.1:8000/v1.
Several runs on one base are served over one copy of its weights: the base as `base`, each run by
the name of its folder. Settings of generation such as temperature=0.7 hold where a client says
nothing.

  --host HOST --port PORT      where to listen; port 0 takes a free one
  --api_key_file FILE          the token that clients must send, as does the variable API_KEY; any
                               host but 127.0.0.1 needs one of 16 characters or more
  --allowed_hosts NAMES        further names by which clients may call the server
  --max_concurrent N           answers that are made at once (16)
  --max_waiting N              requests that wait for a place (32); further ones get 429
  --deadline SECONDS           from a request to the end of its answer (600)
  --served_name NAME           the name of the first model
  --root_path PATH             under which a proxy offers the server
  --backend vllm|sglang        starts that server with the model; --dry_run prints its command

API_HOST, API_PORT, API_KEY, API_MODEL_NAME, MAX_CONCURRENT and FASTAPI_ROOT_PATH say the same."""

TOKEN_VARIABLE = "API_KEY"


def run(argv: list[str]) -> int:
    """Loads what the words name and serves it until the process is asked to end."""
    serving, words = read_serving(argv, os.environ)
    folders, words = _folders(words)
    runs = _read_runs(folders, words)
    token = read_token(serving, os.environ)
    if serving.backend != "luthier":
        from luthier.serving.backends import start

        return start(serving, runs, folders, token)
    if serving.dry_run:
        raise ArgumentsError("dry_run: it prints the command of another backend; name one")
    for module in ("fastapi", "uvicorn", "openai"):
        need(module, "luthier api")

    from luthier.serving.admission import Limits
    from luthier.serving.app import make_app
    from luthier.serving.guard import LOOPBACK, SHORTEST_TOKEN, is_loopback
    from luthier.serving.models import load_models
    from luthier.serving.server import listen, serve

    if not is_loopback(serving.host) and len(token or "") < SHORTEST_TOKEN:
        raise ArgumentsError(
            f"host: {serving.host} can be reached from elsewhere, so clients need a token of "
            f"{SHORTEST_TOKEN} characters or more: set the variable {TOKEN_VARIABLE}, or name a "
            f"file by api_key_file. The one given has {len(token or '')}."
        )
    limits = Limits(serving.max_concurrent, serving.max_waiting, serving.deadline)
    hosts: frozenset[str] | None = frozenset({*LOOPBACK, serving.host, *serving.allowed_hosts})
    if serving.host in ("0.0.0.0", "::") and not serving.allowed_hosts:
        hosts = None  # its names are not known, and the token keeps strangers' pages out
    try:
        listening = listen(serving.host, serving.port)
    except OSError as problem:
        raise ArgumentsError(
            f"port: {serving.host}:{serving.port} cannot be listened on: {problem.strerror}. "
            "Choose another one, or port=0 for a free one."
        ) from problem
    with listening:
        models = load_models(runs, folders, serving.served_name)
        app = make_app(models, limits=limits, token=token, hosts=hosts, root_path=serving.root_path)
        port = listening.getsockname()[1]
        at = f"[{serving.host}]" if ":" in serving.host else serving.host
        console.info(f"models: {', '.join(one.name for one in models)}")
        console.info(f"serving at http://{at}:{port}/v1; Ctrl-C ends it")
        serve(app, listening, header_s=limits.header_s)
    return 0


def read_serving(
    argv: Sequence[str], environment: Mapping[str, str]
) -> tuple[ServingArguments, list[str]]:
    """The knobs of the server, and the words that are none of them."""
    values: dict[str, Any] = {}
    for variable, name in VARIABLES.items():
        if value := environment.get(variable):
            values[name] = value
            console.info(f"{name} = {value} (the variable {variable})")
    if environment.get("API_VERBOSE"):
        console.info("API_VERBOSE has no effect: what clients ask is never logged")
    knobs, rest, waiting = ServingArguments.model_fields, [], list(argv)
    while waiting:
        word = waiting.pop(0)
        name, has_value, value = word.partition("=")
        name = name.removeprefix("--").replace("-", "_") if has_value or word[:2] == "--" else ""
        if name not in knobs:
            rest.append(word)
        elif has_value:
            values[name] = value
        elif knobs[name].annotation is bool:
            is_word = waiting and waiting[0] in ("true", "false")
            values[name] = waiting.pop(0) if is_word else "true"
        elif not waiting:
            raise ArgumentsError(f"{word} expects a value after it.")
        else:
            values[name] = waiting.pop(0)
    try:
        return ServingArguments(**values), rest
    except ValidationError as problem:
        raise ArgumentsError(
            [f"{one['loc'][0]}: {one['msg']} (given: {one['input']!r})" for one in problem.errors()]
        ) from problem


def read_token(serving: ServingArguments, environment: Mapping[str, str]) -> str | None:
    """The token that clients must send; None asks for none.

    Raises:
        ArgumentsError: if the file cannot be read, or is empty.
    """
    if serving.api_key_file is None:
        return environment.get(TOKEN_VARIABLE) or None
    file = Path(serving.api_key_file).expanduser()
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise ArgumentsError(f"api_key_file: {file} cannot be read: {problem}") from problem
    if not token:
        raise ArgumentsError(f"api_key_file: {file} is empty; write the token into it.")
    return token


def _folders(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The run folders at the beginning, and the other words."""
    for number, word in enumerate(words):
        is_folder = Path(word).expanduser().is_dir()
        if not is_folder and (is_config(word) or "=" in word or word.startswith("-")):
            return [Path(each).expanduser() for each in words[:number]], list(words[number:])
    return [Path(each).expanduser() for each in words], []


def _read_runs(folders: Sequence[Path], words: Sequence[str]) -> list[Arguments]:
    from luthier.training.preflight import find_problems_of_a_chat

    if not folders and not words:
        raise MissingArguments([f"luthier api needs to know which model to serve.\n{USAGE}"])
    if not folders:
        return [read_arguments(list(words), check=find_problems_of_a_chat)]
    return [
        read_arguments([str(folder), *words], check=find_problems_of_a_chat) for folder in folders
    ]
