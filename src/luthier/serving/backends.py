"""vLLM and SGLang, started as they are installed with a run's model, adapter and chat template."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier import console
from luthier.arguments.record import Arguments
from luthier.arguments.serving import ServingArguments
from luthier.errors import ArgumentsError, MissingPackage, ModelError
from luthier.stages.stage import STAGES

CHAT_TEMPLATE = "chat_template.jinja"
USUAL_RANK = 16
"""The rank of adapters that vLLM takes where its `--max-lora-rank` says nothing."""


def start(
    serving: ServingArguments, runs: Sequence[Arguments], folders: Sequence[Path], token: str | None
) -> int:
    """Becomes the backend's own process, or prints its command (`dry_run`).

    Raises:
        ArgumentsError: for what it cannot be told.
        MissingPackage: if it is not installed.
    """
    words = command(serving, runs, folders)
    if serving.dry_run:
        print(shlex.join(words))
        return 0
    if token and serving.backend == "sglang":
        raise ArgumentsError(
            "backend: sglang takes its token only as a word of the command line, which every user "
            "of the machine can read; unset API_KEY and let a proxy ask for it"
        )
    if token:
        os.environ["VLLM_API_KEY"] = token
    if shutil.which(words[0]) is None:
        raise MissingPackage(
            f"backend: {serving.backend} is not installed here: there is no program {words[0]!r}. "
            "Install it in an environment of its own and start luthier with that on PATH, or print "
            "the command with --dry_run."
        )
    console.info(f"starting {shlex.join(words)}")
    os.execvp(words[0], words)


def command(
    serving: ServingArguments, runs: Sequence[Arguments], folders: Sequence[Path]
) -> list[str]:
    """The words that start the backend."""
    first = runs[0]
    if any(STAGES.get(one.finetuning.stage).scores for one in runs):
        raise ArgumentsError(
            f"backend: {serving.backend} is given models that predict tokens; without backend, "
            "luthier itself serves a reward model (stage: rm)"
        )
    base = str(first.model.model_name_or_path)
    adapters: dict[str, Path] = {}
    for number, one in enumerate(runs):
        paths = [Path(path) for path in one.model.adapter_name_or_path]
        if len(paths) > 1:
            raise ArgumentsError(
                f"adapter_name_or_path: {serving.backend} puts one adapter on a model, and this "
                f"run has {len(paths)}: export the merged model and serve that"
            )
        if paths:
            name = folders[number].resolve().name if folders else paths[0].name
            adapters[name] = paths[0]
    names = [serving.served_name or Path(base).name]
    if serving.served_name and adapters:
        adapters = {serving.served_name: next(iter(adapters.values()))} | dict(
            list(adapters.items())[1:]
        )
        names = [Path(base).name]
    for folder in adapters.values():
        check_adapter(folder, serving.backend)
    listed = [f"{name}={path}" for name, path in adapters.items()]
    chat_template = _chat_template([*adapters.values(), Path(base)])
    if serving.backend == "vllm":
        words = ["vllm", "serve", base, "--served-model-name", *names]
        if adapters:
            rank = max(map(_rank, adapters.values()))
            words += ["--enable-lora", "--lora-modules", *listed]
            words += ["--max-lora-rank", str(_rank_for(rank))] if rank > USUAL_RANK else []
    else:
        words = ["sglang", "serve", "--model-path", base, "--served-model-name", *names]
        words += ["--lora-paths", *listed] if adapters else []
    if chat_template:
        words += ["--chat-template", str(chat_template)]
    words += ["--host", serving.host, "--port", str(serving.port)]
    return words + (["--root-path", serving.root_path] if serving.root_path else [])


def check_adapter(folder: Path, backend: str) -> None:
    """Refuses what the backends' own adapters cannot be: whole modules beside, DoRA."""
    config = _config(folder)
    wrong = [
        what
        for what, is_there in (
            ("modules_to_save", config.get("modules_to_save")),
            ("DoRA", config.get("use_dora")),
        )
        if is_there
    ]
    if wrong:
        raise ModelError(
            f"{folder} has {' and '.join(wrong)}, which {backend} does not take in an adapter: "
            "merge it with `luthier export` and serve the merged model"
        )


def _config(folder: Path) -> Mapping[str, object]:
    try:
        found: dict[str, object] = json.loads(
            (folder / "adapter_config.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError) as problem:
        raise ModelError(f"{folder}: adapter_config.json cannot be read: {problem}") from problem
    return found


def _rank(folder: Path) -> int:
    config = _config(folder)
    pattern = config.get("rank_pattern")
    ranks = [config.get("r", 8), *(pattern.values() if isinstance(pattern, dict) else ())]
    return max(int(str(rank)) for rank in ranks)


def _rank_for(rank: int) -> int:
    """The smallest of vLLM's ranks that holds one."""
    return next((one for one in (8, 16, 32, 64, 128, 256, 320, 512) if one >= rank), rank)


def _chat_template(folders: Sequence[Path]) -> Path | None:
    """The chat template that training has saved."""
    return next((f / CHAT_TEMPLATE for f in folders if (f / CHAT_TEMPLATE).is_file()), None)
