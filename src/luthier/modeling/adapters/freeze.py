"""`freeze`: a few layers learn, the rest stays as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.arguments.choices import ADAPTERS, Adapter
from luthier.arguments.record import Arguments
from luthier.errors import ModelError, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER = re.compile(r"\.(\d+)\.([^.]+)")
"""A layer's number inside a parameter's name, and the module that comes after it."""


def prepare(
    model: PreTrainedModel,
    arguments: Arguments,
    *,
    is_trainable: bool,
    checkpoint: Path | None = None,
) -> Any:
    """Marks the chosen modules of the chosen layers, and the extra modules, as learning."""
    from luthier.modeling.adapters.targets import added_layers, number_of_layers, text_part
    from luthier.modeling.heads import SCORE, has_score

    model.requires_grad_(False)
    if not is_trainable:
        return model
    finetuning = arguments.finetuning
    part = text_part(model)
    names = {
        name: None for name, _ in model.named_parameters() if part is None or part.fullmatch(name)
    }
    inside, outside = find_modules(names)
    modules = finetuning.freeze_trainable_modules
    if "all" in modules:
        modules = ("all",)
    else:
        _check("freeze_trainable_modules", modules, ["all", *inside], {})
    _check("freeze_extra_modules", finetuning.freeze_extra_modules, outside, _tied_head(model))
    num_layers = number_of_layers(model)
    if finetuning.use_llama_pro:
        layers = added_layers(num_layers, finetuning.freeze_trainable_layers)
    else:
        layers = choose_layers(num_layers, finetuning.freeze_trainable_layers)
    for name, parameter in model.named_parameters():
        place = _LAYER.search(name)
        if place is not None:
            is_wanted = modules == ("all",) or place[2] in modules
            is_chosen = is_wanted and int(place[1]) in layers
        else:
            is_chosen = name.split(".")[-2] in finetuning.freeze_extra_modules
        is_head = has_score(model) and name.startswith(f"{SCORE}.")
        parameter.requires_grad_((is_chosen and name in names) or is_head)
    chosen = f"{', '.join(modules)} of layers {', '.join(map(str, layers))}"
    learning = ([chosen] if layers else []) + list(finetuning.freeze_extra_modules)
    console.info(f"freeze: what learns is {', '.join(learning)} (layers 0 to {num_layers - 1})")
    return model


def find_modules(parameter_names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names that a user may choose from, sorted: inside the layers, and outside of them.

    A layer is what a number stands for in `model.layers.3.mlp.up_proj.weight` or
    `transformer.h.3.mlp.c_fc.weight`; the module inside is the piece after it (`mlp`), the one
    outside the last but one of a name without a number (`embed_tokens`, `wte`, `ln_f`).
    """
    inside, outside = set(), set()
    for name in parameter_names:
        place = _LAYER.search(name)
        if place is not None:
            inside.add(place[2])
        elif "." in name:
            outside.add(name.split(".")[-2])
    return sorted(inside), sorted(outside)


def choose_layers(num_layers: int, count: int) -> range:
    """The last `count` layers, or the first ones when it is negative; never more than there are."""
    if count < 0:
        return range(min(-count, num_layers))
    return range(max(num_layers - count, 0), num_layers)


def _tied_head(model: PreTrainedModel) -> dict[str, str]:
    """A head that is the embeddings' own matrix -> by what that is named."""
    from luthier.modeling.vocabulary import embedding_names, is_tied

    if not is_tied(model):
        return {}
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    return {name.rpartition(".")[2]: ", ".join(embedding_names(model)) for name in names}


def _check(
    argument: str,
    asked: Iterable[str],
    known: list[str],
    elsewhere: Mapping[str, str],
) -> None:
    unknown = [name for name in asked if name not in known]
    if not unknown:
        return
    name = unknown[0]
    if name in elsewhere:
        raise ModelError(
            f"{argument}: {name} has no weight of its own in this model, it is that of "
            f"{elsewhere[name]} (tied). Name {elsewhere[name]}, and both learn."
        )
    hint = suggest(name, known)
    raise ModelError(
        f"{argument}: module {name!r} is not found in this model."
        f"{hint if 'Did you' in hint else ''} Choose from: {', '.join(known)}."
    )


ADAPTERS.register("freeze")(Adapter(prepare))
