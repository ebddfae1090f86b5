"""A peft model <-> its file: the names of weights, and a head that is the embeddings as well."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import Embedding, Linear
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers.integrations import is_deepspeed_zero3_enabled

from luthier import console
from luthier.errors import ModelError
from luthier.modeling.heads import has_score
from luthier.modeling.vocabulary import is_tied

FILE = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

TRANSPOSED = "transposed"

HEAD = "lm_head"
"""By which peft knows that embeddings and head are meant."""


class Transposed(nn.Module):
    """A linear layer whose weight is the transpose of another layer's parameter."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.transposed = parameter

    @property
    def weight(self) -> Tensor:
        """What `nn.Linear` would hold."""
        return self.transposed.t()

    def forward(self, x: Tensor) -> Tensor:
        """The product with the weight."""
        return nn.functional.linear(x, self.weight)


def adapts_tied(model: PeftModel) -> bool:
    """Whether LoRA lies on the matrix that a model's embeddings and head share.

    Such an adapter is not merged: it would change what the other one of the two computes.
    """
    base = model.get_base_model()
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    return is_tied(base) and any(isinstance(each, (Embedding, Linear)) for each in ends)


def tie_head(model: PeftModel) -> None:
    """Gives the head the embeddings' own A and B, in place, where an adapter says they are tied.

    peft 0.21.2 makes two parameters of one memory, which learn apart and part in another dtype. It
    also takes the head's name out of the configuration, without which it does not find the pair
    again when the embeddings have a name that it does not know (gpt2's wte).
    """
    for config in model.peft_config.values():
        if _ties(config) and config.modules_to_tie:
            config.modules_to_save = [*config.modules_to_save, HEAD]
        if _ties(config) and config.target_modules_to_tie:
            config.target_modules = {*config.target_modules, HEAD}
    if _is_pair(model):
        embeddings, head = _ends(model)
        for name in embeddings.lora_embedding_A:
            head.lora_A[name] = Transposed(embeddings.lora_embedding_B[name])
            head.lora_B[name] = Transposed(embeddings.lora_embedding_A[name])


def with_head(model: PeftModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model by name, with those of a tied head as peft's file has them."""
    if not _is_pair(model):
        return dict(weights)
    names = {module: name for name, module in model.named_modules()}
    embeddings, head = (names[each] for each in _ends(model))
    own = {name: each for name, each in weights.items() if not name.endswith(f".{TRANSPOSED}")}
    for adapter in model.peft_config:
        for ours, theirs in ("AB", "BA"):
            shared = own[f"{embeddings}.lora_embedding_{theirs}.{adapter}"]
            own[f"{head}.lora_{ours}.{adapter}.weight"] = shared.t().contiguous()
    return own


def _is_pair(model: PeftModel) -> bool:
    embeddings, head = _ends(model)
    is_said = any(_ties(config) for config in model.peft_config.values())
    return is_said and isinstance(embeddings, Embedding) and isinstance(head, Linear)


def _ties(config: Any) -> bool:
    return isinstance(config, LoraConfig) and config.ensure_weight_tying


def _ends(model: PeftModel) -> tuple[Any, Any]:
    base = model.get_base_model()
    return base.get_input_embeddings(), base.get_output_embeddings()


def names_in_file(model: Any) -> dict[str, str]:
    """The names of a peft model's own weights in a file -> those in the model."""
    # it looks at names only
    saved: dict[str, str] = get_peft_model_state_dict(
        model,
        state_dict={name: name for name in model.state_dict()},
        save_embedding_layers=False,
    )
    return {key: name for key, name in saved.items() if not name.endswith(f".{TRANSPOSED}")}


def read_back(model: PeftModel, folder: Path) -> None:
    """Loads an adapter as plain peft does, on a model of the same kind that takes no memory.

    Raises:
        ModelError: when peft cannot load it, or misses a weight.
    """
    base: Any = model.get_base_model()
    if has_score(base) and is_deepspeed_zero3_enabled():
        console.info(f"{folder} was not read back: all ranks would have to, in parts")
        return
    kind = type(base).__bases__[1] if isinstance(base, FSDPModule) else type(base)
    try:
        with torch.device("meta"):
            twin = kind(copy.deepcopy(base.config))
    except (NotImplementedError, RuntimeError, TypeError) as problem:
        console.info(f"{folder} was not read back: {kind.__name__} needs its weights ({problem})")
        return
    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            PeftModel.from_pretrained(twin, folder, low_cpu_mem_usage=True)
    except (KeyError, RuntimeError, UserWarning, ValueError) as problem:
        raise ModelError(
            f"{folder}: the adapter that was written cannot be loaded: {problem}. The trained "
            f"weights are in its {FILE} and in the last checkpoint."
        ) from problem
