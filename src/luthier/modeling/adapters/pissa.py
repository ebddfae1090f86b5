"""PiSSA (Meng et al. 2024): LoRA that starts from the largest singular values of the weights.

W is taken apart, W = (W - s B0 A0) + s B0 A0. The first part is frozen, B A learns from B0 A0 on.
A file holds the same model as a plain LoRA of twice the rank beside the unchanged W:

    W + s (B A - B0 A0) = W + s [B | -B0] [A ; A0]

The fast decomposition draws at random, so it is made once. Whoever reads the file decomposes
nothing, and a run that goes on finds A0 and B0 in it.
"""

# H hidden of a weight's input, O of its output, R rank

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from peft.tuners.lora import Embedding, LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from luthier.arguments.record import Arguments
from luthier.errors import CheckpointError
from luthier.modeling.adapters.file import FILE, Transposed, names_in_file
from luthier.processes.ranks import gather_objects, rank, share_fate

ADAPTER = "default"
"""What peft calls the one adapter of a run."""

_starts: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()
"""Models that have started so -> their A0 and B0, by the names of A and B in the model."""


def start_pissa(model: PeftModel, arguments: Arguments, checkpoint: Path | None) -> None:
    """Lets a new adapter begin with what its layers' weights give up, in place.

    LoRA on embeddings starts at zero change as ever, and so does a head that is the embeddings'
    own matrix. Every rank has to call it; the first one decomposes, or reads the A0 and B0 that are
    in the checkpoint of a run that goes on.

    Raises:
        CheckpointError: when the checkpoint holds no A0 and B0.
    """
    if checkpoint is not None:
        start = _from_first_rank(lambda: _read_start(model, checkpoint))
    else:
        start = _decompose(model, arguments.finetuning.pissa_iter, arguments.training.seed)
    _take(model, start)
    with torch.no_grad():
        for name, before in start.items():
            model.get_parameter(name).copy_(before)


def take_apart_again(model: PeftModel, kind: str, seed: int) -> None:
    """Takes away from the weights what an adapter from elsewhere was begun with, as far as known.

    `kind` is peft's word for how it began: `pissa`, or `pissa_niter_N`, which draws at random.
    """
    iterations = -1 if kind == "pissa" else int(kind.rpartition("_")[2])
    _take(model, _decompose(model, iterations, seed))


@contextmanager
def as_plain_lora(model: PeftModel, weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """While open, the adapter's configuration says twice the rank; gives the weights as of a file.

    Nothing happens where none was taken apart.
    """
    start = _starts.get(model)
    if start is None:
        yield dict(weights)
        return
    joined = dict(weights)
    for name, before in start.items():
        after, sign = joined[name], -1 if _dim(name) else 1
        joined[name] = torch.cat([after, sign * before.to(after.device)], _dim(name))
    config = model.peft_config[ADAPTER]
    kept = config.r, config.lora_alpha
    config.r *= 2  # the scale stays: alpha / r, or alpha / sqrt(r)
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2
    try:
        yield joined
    finally:
        config.r, config.lora_alpha = kept


def trained_halves(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file with A and B alone, by their names in the model."""
    start = _starts.get(model, {})
    return {
        name: _halves(name, weight)[0] if name in start else weight
        for name, weight in weights.items()
    }


def _from_first_rank(find: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The others would decompose the same, later, and might round it otherwise."""
    start: dict[str, Tensor] = gather_objects(share_fate(lambda: {} if rank() else find()))[0]
    return start


def _decompose(model: PeftModel, iterations: int, seed: int) -> dict[str, Tensor]:
    """A0 and B0 of every layer, by the names of A and B; zero where nothing is taken."""

    def find() -> dict[str, Tensor]:
        start: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, layer in _layers(model):
                is_embedding = isinstance(layer, Embedding)
                form = "lora_embedding_{}.{}" if is_embedding else "lora_{}.{}.weight"
                names = [f"{name}.{form.format(letter, ADAPTER)}" for letter in "AB"]
                weight = layer.get_base_layer().weight
                if is_embedding or weight is model.get_input_embeddings().weight:
                    start |= {each: torch.zeros(model.get_parameter(each).shape) for each in names}
                else:
                    parts = (part.cpu() for part in _largest(layer, iterations))
                    start |= dict(zip(names, parts, strict=True))
        return start

    return _from_first_rank(find)


def _layers(model: PeftModel) -> list[tuple[str, Any]]:
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
        and not any(isinstance(each, Transposed) for each in layer.lora_A.values())
    ]


def _take(model: PeftModel, start: dict[str, Tensor]) -> None:
    _starts[model] = start
    for name, layer in _layers(model):
        if isinstance(layer, Embedding):
            continue
        a_RH, b_OR = (start[f"{name}.lora_{letter}.{ADAPTER}.weight"] for letter in "AB")
        if a_RH.any():
            weight = layer.get_base_layer().weight
            taken = (layer.scaling[ADAPTER] * b_OR @ a_RH).to(weight.device)
            rest = weight.data.float() - (taken.t() if layer.fan_in_fan_out else taken)
            weight.data = rest.to(weight.dtype)


def _largest(layer: Any, iterations: int) -> tuple[Tensor, Tensor]:
    """A0 and B0 of one layer: s B0 A0 are its largest singular values and their vectors.

    A weight that has fewer of them than the rank starts as LoRA does in the rest.
    """
    weight = layer.get_base_layer().weight.data.float()
    weight_OH = weight.t() if layer.fan_in_fan_out else weight
    num = min(layer.r[ADAPTER], *weight_OH.shape)
    if iterations == -1:
        left_OR, values_R, right_RH = torch.linalg.svd(weight_OH, full_matrices=False)
    else:
        left_OR, values_R, right_HR = torch.svd_lowrank(weight_OH, num, niter=iterations)
        right_RH = right_HR.t()
    root_R = (values_R[:num] / layer.scaling[ADAPTER]).sqrt()
    a_RH = layer.lora_A[ADAPTER].weight.detach().float().clone()
    b_OR = torch.zeros_like(layer.lora_B[ADAPTER].weight).float()
    a_RH[:num] = root_R[:, None] * right_RH[:num]
    b_OR[:, :num] = left_OR[:, :num] * root_R
    return a_RH, b_OR


def _read_start(model: PeftModel, checkpoint: Path) -> dict[str, Tensor]:
    saved = load_file(checkpoint / FILE)
    start = {}
    for key, name in names_in_file(model).items():
        if ".lora_A." in name or ".lora_B." in name or ".lora_embedding_" in name:
            if saved[key].shape[_dim(name)] != 2 * model.get_parameter(name).shape[_dim(name)]:
                raise CheckpointError(
                    f"{checkpoint / FILE} does not hold what its PiSSA adapter began with, so the "
                    "weights that it belongs to cannot be made again. Set overwrite_output_dir: "
                    "true to start anew."
                )
            half = _halves(name, saved[key])[1].float()
            start[name] = -half if _dim(name) else half
    return start


def _dim(name: str) -> int:
    """The dimension of a matrix that is the rank's."""
    return 0 if ".lora_A." in name or ".lora_embedding_A." in name else 1


def _halves(name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    first, second = weight.chunk(2, _dim(name))
    return first.contiguous(), second.contiguous()
