"""Weights and optimizer states in parts: gathered, written, and read by any number of ranks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from luthier.errors import CheckpointError
from luthier.modeling.adapters.file import names_in_file
from luthier.modeling.adapters.pissa import trained_halves
from luthier.modeling.sharded import has_shards, whole
from luthier.processes.ranks import gather_objects, rank, share_fate

WEIGHTS_IN_PARTS = "pytorch_model_fsdp_0"
OPTIMIZER_IN_PARTS = "optimizer_0"
OPTIMIZER_WHOLE = "optimizer.bin"
OPTIMIZER_OF_OTHERS = "optimizer.pt"
"""Names in a checkpoint: accelerate's of parts (torch's format) and of whole states of FSDP, and
transformers' of a run whose ranks hold all."""


def lie_in_parts(model: Any) -> None:
    """Has every weight lie in parts, as all that reads or writes states expects.

    A forward pass without a backward pass, as evaluation makes it, leaves the outermost weights
    whole, and the optimizer knows them in parts only.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_weights(model: Any) -> dict[str, Tensor]:
    """The weights of a result, whole, by name; every rank has to call it.

    They lie in the CPU's memory of the first rank, and the others get none. Of a peft model only
    what learns is gathered.
    """
    lie_in_parts(model)
    is_adapter = isinstance(model, PeftModel)
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapter
    )
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    second = set() if is_adapter else set(model.all_tied_weights_keys or ())
    return {name: weight for name, weight in weights.items() if name not in second}


def save_weights(model: Any, folder: str | Path) -> None:
    """Writes weights in parts, every rank its own; all of them have to call it."""
    lie_in_parts(model)
    options = StateDictOptions(cpu_offload=True)
    state = {"model": get_model_state_dict(model, options=options)}
    dcp.save(state, checkpoint_id=Path(folder) / WEIGHTS_IN_PARTS)


def load_weights(model: Any, folder: str | Path) -> None:
    """Reads a checkpoint's or a result's weights; every rank has to call it.

    It may be one of another number of ranks, or of a run without FSDP, and the model whole or in
    parts, DeepSpeed's before there is an engine included.

    Raises:
        CheckpointError: if the folder holds no weights.
    """
    lie_in_parts(model)
    folder = Path(folder)
    if (folder / WEIGHTS_IN_PARTS).is_dir():
        state: dict[str, Any] = {"model": get_model_state_dict(model)}
        _read_parts(state, folder / WEIGHTS_IN_PARTS)
        set_model_state_dict(model, state["model"])
        return
    weights: dict[str, Any] = share_fate(lambda: {} if rank() else _read_weights(model, folder))
    if not has_shards(model):
        set_model_state_dict(model, weights, options=_from_first_rank(strict=False))
        return
    for name, each in model.named_parameters():
        if each.requires_grad:
            with whole([each], changes=True), torch.no_grad():
                if rank() == 0:
                    each.copy_(weights[name])


def save_optimizer(
    model: Any, optimizer: torch.optim.Optimizer, folder: str | Path, *, in_parts: bool
) -> None:
    """Writes an optimizer's states by the names of their weights, in parts or by the first rank.

    Every rank has to call it.
    """
    lie_in_parts(model)
    options = StateDictOptions(full_state_dict=not in_parts, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    if in_parts:
        dcp.save({"optimizer": state}, checkpoint_id=Path(folder) / OPTIMIZER_IN_PARTS)
    elif rank() == 0:
        torch.save(state, Path(folder) / OPTIMIZER_WHOLE)


def load_optimizer(model: Any, optimizer: torch.optim.Optimizer, folder: str | Path) -> None:
    """Reads an optimizer's states; every rank has to call it.

    They may be those of another number of ranks, or of a run without FSDP, and so may this run.
    """
    lie_in_parts(model)
    folder = Path(folder)
    if (folder / OPTIMIZER_IN_PARTS).is_dir():
        state: dict[str, Any] = {"optimizer": get_optimizer_state_dict(model, optimizer)}
        _read_parts(state, folder / OPTIMIZER_IN_PARTS)
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
        return
    saved: dict[str, Any] = share_fate(
        lambda: {} if rank() else _read_optimizer(model, optimizer, folder)
    )
    groups = gather_objects(None if saved.get("state") else saved.get("param_groups"))[0]
    if groups is None:
        set_optimizer_state_dict(model, optimizer, saved, options=_from_first_rank(strict=True))
        return
    for group, kept in zip(optimizer.param_groups, groups, strict=True):  # of plain SGD: no states
        group |= {name: value for name, value in kept.items() if name != "params"}


def is_of_fsdp(folder: str | Path) -> bool:
    """Whether a run with FSDP has written a checkpoint's optimizer states."""
    names = (OPTIMIZER_IN_PARTS, OPTIMIZER_WHOLE)
    return any((Path(folder) / name).exists() for name in names)


def _read_parts(state: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(state, checkpoint_id=folder)


def _from_first_rank(*, strict: bool) -> StateDictOptions:
    return StateDictOptions(
        full_state_dict=True, broadcast_from_rank0=dist.is_initialized(), strict=strict
    )


def _read_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    files = [
        file
        for pattern in ("adapter_model.safetensors", "model.safetensors", "model-*.safetensors")
        for file in sorted(folder.glob(pattern))
    ]
    if not files:
        raise CheckpointError(
            f"{folder} holds no weights: neither adapter_model.safetensors nor model.safetensors "
            f"nor {WEIGHTS_IN_PARTS}. Name another checkpoint, or set overwrite_output_dir: true "
            "to start anew."
        )
    is_adapter = isinstance(model, PeftModel)
    names = names_in_file(model) if is_adapter else {name: name for name in model.state_dict()}
    weights: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as saved:
            weights |= {names[key]: saved.get_tensor(key) for key in saved.keys() if key in names}
    learned = {name for name, each in model.named_parameters() if each.requires_grad}
    if learned <= weights.keys():
        return trained_halves(model, weights)
    if is_adapter:
        absent = sorted(learned - weights.keys())
        raise CheckpointError(f"{files[0]} lacks {len(absent)} weights that learn ({absent[0]}).")
    # stored in another form than the model's own, as experts are; float32 takes all dtypes in
    kind: Any = type(model).__bases__[1] if isinstance(model, FSDPModule) else type(model)
    read: dict[str, Tensor] = kind.from_pretrained(folder, dtype=torch.float32).state_dict()
    return read


def _read_optimizer(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> dict[str, Any]:
    if (folder / OPTIMIZER_WHOLE).is_file():
        whole: dict[str, Any] = torch.load(
            folder / OPTIMIZER_WHOLE, map_location="cpu", weights_only=True
        )
        return whole
    if not (folder / OPTIMIZER_OF_OTHERS).is_file():
        raise CheckpointError(
            f"{folder} holds optimizer states in another form than FSDP's ({OPTIMIZER_WHOLE}, "
            f"{OPTIMIZER_IN_PARTS}) or that of one process ({OPTIMIZER_OF_OTHERS}). Go on in the "
            "way that it was written, or name its weights as the model of a new run."
        )
    saved = torch.load(folder / OPTIMIZER_OF_OTHERS, map_location="cpu", weights_only=True)
    by_weight = {id(weight): name for name, weight in model.named_parameters()}
    names = [by_weight[id(each)] for group in optimizer.param_groups for each in group["params"]]
    return {
        "state": {names[number]: state for number, state in saved["state"].items()},
        "param_groups": [
            group | {"params": [names[number] for number in group["params"]]}
            for group in saved["param_groups"]
        ],
    }
