"""A model with more layers that change nothing yet (LLaMA Pro, Wu et al. 2024).

Behind each group of layers stands a copy of its last one whose last matrices of attention and
feed-forward (`o_proj`, `down_proj`) are zero: it adds nothing to what it reads.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from luthier import console
from luthier.checkpoints.lock import FILE_NAME as LOCK
from luthier.errors import ModelError
from luthier.exporting.place import check_target, new_manifest, staged
from luthier.modeling.counts import LAYER_COUNT_NAMES, count_layers
from luthier.modeling.source import check_weights, fetch_model

INDEX = "model.safetensors.index.json"

LAST_MATRICES = ("o_proj", "down_proj")
"""What a layer adds to its input comes through these."""

_LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")
_NOT_COPIED = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|h5|msgpack)|README\.md|MANIFEST\.json")


def expand(name: str, num_blocks: int, folder: Path) -> Path:
    """Writes a model with so many more layers, a file of weights at a time.

    Args:
        name: of the model, as `model_name_or_path` has it.
        num_blocks: layers that are added; they divide those that are there.
        folder: where it is published, whole or not at all.

    Returns:
        The folder.

    Raises:
        ModelError: if the layers cannot be counted, are no multiple, or have no such matrices, or
            if the logits of the new model are not those of the old one, bit for bit.
        CheckpointError: if the folder is not empty.
        SaveError: if it cannot be written.
    """
    source = fetch_model(name)
    if source.gguf_file:
        raise ModelError(
            f"{name}: the weights of a GGUF file are packed. Export it first: luthier export "
            "with model_name_or_path and export_dir writes a folder of safetensors."
        )
    path = Path(source.path) if source.is_local else _fetched(name)
    check_weights(source)
    check_target(folder, "--output")
    config = AutoConfig.from_pretrained(path)
    num_layers = count_layers(config)
    if num_layers is None or num_blocks < 1 or num_layers % num_blocks:
        fitting = [n for n in range(1, (num_layers or 0) + 1) if not (num_layers or 0) % n]
        raise ModelError(
            f"--blocks {num_blocks}: {name} has {num_layers} layers, which cannot be parted into "
            f"so many equal groups. Choose from: {', '.join(map(str, fitting))}."
        )
    group = num_layers // num_blocks
    files = sorted(path.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    with staged(
        folder, size + size * num_blocks // num_layers, new_manifest(), "--output"
    ) as place:
        for file in path.iterdir():
            if file.is_file() and file.name != LOCK and not _NOT_COPIED.fullmatch(file.name):
                shutil.copyfile(file, place / file.name)
        _with_more_layers(config, num_layers, group).save_pretrained(place)
        _write_weights(files, place, group, num_layers)
        _prove(name, path, place)
    new = range(group, num_layers + num_blocks, group + 1)
    console.info(f"{name}: {num_layers} layers -> {num_layers + num_blocks}; new are {[*new]}")
    return folder


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        kinds = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=kinds))
    except (OSError, ValueError) as problem:
        raise ModelError(
            f"{name} cannot be fetched: {str(problem).splitlines()[0]} Name a folder."
        ) from problem


def _with_more_layers(config: PreTrainedConfig, num_layers: int, group: int) -> PreTrainedConfig:
    """The configuration of the new model; what it says of each layer is said of each copy."""
    text: Any = config.get_text_config()
    for name, value in text.to_dict().items():
        if name in LAYER_COUNT_NAMES and value == num_layers:
            setattr(text, name, num_layers + num_layers // group)
        elif isinstance(value, list) and len(value) == num_layers:
            copied = [[each] * (1 + _is_last(at, group)) for at, each in enumerate(value)]
            setattr(text, name, [*chain(*copied)])
    return config


def _is_last(layer: int, group: int) -> bool:
    return (layer + 1) % group == 0


def _renamed(name: str, group: int) -> Iterator[tuple[str, bool]]:
    """A tensor's name in the new model, and that of its copy where its layer has one."""
    found = _LAYER.fullmatch(name)
    if found is None:
        yield name, False
        return
    before, number, behind = found[1], int(found[2]), found[3]
    first = number + number // group
    yield f"{before}{first}{behind}", False
    if _is_last(number, group):
        yield f"{before}{first + 1}{behind}", True


def _write_weights(files: list[Path], place: Path, group: int, num_layers: int) -> None:
    zeroed: dict[str, set[str]] = {name: set() for name in LAST_MATRICES}
    index: dict[str, str] = {}
    total = 0
    for number, file in enumerate(files, 1):
        tensors: dict[str, Tensor] = {}
        with safe_open(file, "pt") as opened:
            for old in opened.keys():
                for name, is_copy in _renamed(old, group):
                    tensor = opened.get_tensor(old).clone()
                    last = next((each for each in LAST_MATRICES if each in name.split(".")), None)
                    if is_copy and last:
                        tensor.zero_()
                        layer = _LAYER.fullmatch(name)
                        zeroed[last].add(layer[2] if layer else "")
                    tensors[name] = tensor
        called = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        called = called if len(files) > 1 else "model.safetensors"
        save_file(tensors, place / called, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, called)
        total += sum(each.nbytes for each in tensors.values())
    for name, layers in zeroed.items():
        if len(layers) != num_layers // group:
            raise ModelError(
                f"its layers have no {name} (found in {len(layers)} of {num_layers // group} that "
                "are copied), so copies that change nothing cannot be made of them. Llama, "
                "Mistral, Qwen, Gemma and Phi-3 have one."
            )
    if len(files) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (place / INDEX).write_text(json.dumps(content, indent=1), encoding="utf-8")
    else:
        (place / INDEX).unlink(missing_ok=True)


def _prove(name: str, old: Path, new: Path) -> None:
    """Compares the logits of both models, one after the other in memory."""
    vocabulary = AutoConfig.from_pretrained(old).get_text_config().vocab_size
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (1, 48), generator=drawn)
    logits = []
    for path in (old, new):
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
        with torch.no_grad():
            logits.append(model(ids).logits)
        del model
    if not torch.equal(*logits):
        apart = (logits[0].float() - logits[1].float()).abs().max().item()
        raise ModelError(
            f"{name}: the model with more layers differs by {apart:.2g} in its logits, so a copy "
            "changes what passes through it. Nothing was published."
        )
    console.info("proof: logits of 48 tokens are equal, bit for bit")
