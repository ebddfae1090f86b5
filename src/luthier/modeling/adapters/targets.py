"""Which modules of a model can carry LoRA, by their last names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError, suggest

OTHER_HEADS = {"chatglm": "output_layer", "internlm2": "output"}
"""Model types of remote code whose output layer is not called lm_head -> its name."""


def linear_names(model: PreTrainedModel) -> list[str]:
    """The last names of all linear modules but the output head, sorted.

    GPT-2's Conv1D counts: it is a linear layer with its weight stored the other way round.
    """
    head = model.get_output_embeddings()
    heads = {"lm_head", OTHER_HEADS.get(model.config.model_type, "lm_head")}
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if _is_linear(module) and module is not head and not heads & set(name.split("."))
        }
    )


def choose_targets(model: PreTrainedModel, asked: Sequence[str]) -> list[str]:
    """The module names that get LoRA (`lora_target`); `all` stands for every linear one.

    A name may be a module's last name or the end of its path (`mlp.up_proj`).

    Raises:
        ModelError: listing the choices, when a name matches nothing or nothing that can be adapted.
    """
    if "all" in asked or not asked:
        return linear_names(model)
    fitting = [name for name, module in model.named_modules() if _can_adapt(module)]
    known = sorted({name.rpartition(".")[2] for name in fitting})
    unknown = [name for name in asked if not _matches(name, fitting)]
    if unknown:
        hint = suggest(unknown[0], known)
        raise ModelError(
            f"lora_target: this model has no module {', '.join(map(repr, unknown))} that LoRA can "
            f"adapt.{hint if 'Did you' in hint else ''} Choose from: all, {', '.join(known)}."
        )
    return list(asked)


def are_stored_crosswise(model: PreTrainedModel, targets: Sequence[str]) -> bool:
    """Whether the targets hold their weight as (in, out), as GPT-2's Conv1D does."""
    return any(
        isinstance(module, Conv1D) and any(_matches(target, [name]) for target in targets)
        for name, module in model.named_modules()
    )


def check_saved_modules(model: PreTrainedModel, asked: Sequence[str]) -> None:
    """Refuses names of `additional_target` that the model does not have.

    Raises:
        ModelError: listing the modules outside the layers.
    """
    names = [name for name, _ in model.named_modules() if name]
    unknown = [name for name in asked if not _matches(name, names)]
    if unknown:
        outside = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if name
            and not any(part.isdigit() for part in name.split("."))
            and any(True for _ in module.parameters(recurse=False))
        }
        raise ModelError(
            f"additional_target: this model has no module {', '.join(map(repr, unknown))}. Outside "
            f"its layers it has: {', '.join(sorted(outside))}."
        )


def _matches(asked: str, names: Sequence[str]) -> bool:
    return any(name == asked or name.endswith(f".{asked}") for name in names)


def _is_linear(module: nn.Module) -> bool:
    kind = type(module).__name__
    return isinstance(module, Conv1D) or ("Linear" in kind and "Embedding" not in kind)


def _can_adapt(module: nn.Module) -> bool:
    return _is_linear(module) or isinstance(module, (nn.Embedding, nn.Conv1d, nn.Conv2d))
