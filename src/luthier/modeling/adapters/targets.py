"""Which modules of a model can carry LoRA, by their last names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.pytorch_utils import Conv1D

from luthier import console
from luthier.arguments.finetuning import FinetuningArguments
from luthier.errors import ModelError, suggest
from luthier.modeling.counts import LAYER_COUNT_NAMES, count_layers
from luthier.modeling.heads import SCORE
from luthier.modeling.sharded import full_shape

OTHER_HEADS = {"chatglm": "output_layer", "internlm2": "output"}
"""Model types of remote code whose output layer is not called lm_head -> its name."""

IN_ONE = {"gate_up_proj": ("gate_proj", "up_proj")}
"""Weights of several layers in one -> what those are called today, be it w1 and w3 in a file."""

_LAYER = re.compile(r".*\.\d+\.")
"""What a path begins with inside of a numbered layer."""


def text_part(model: PreTrainedModel) -> re.Pattern[str] | None:
    """The paths of what reads and writes text in a model that also sees or hears; None elsewhere.

    The rest of such a model takes no part in text and gets no gradient, so it is left as it is.
    """
    if model.config.get_text_config() is model.config:
        return None
    ends = (model.get_decoder(), model.get_output_embeddings() or getattr(model, SCORE, None))
    paths = [re.escape(name) for name, module in model.named_modules() if name and module in ends]
    if not paths:
        return None
    console.once("text alone is read: what sees or hears in this model stays as it is")
    return re.compile(rf"({'|'.join(paths)})(\..*)?")


def linear_names(model: PreTrainedModel) -> list[str]:
    """The last names of all linear modules but the output head, sorted.

    GPT-2's Conv1D counts: it is a linear layer with its weight stored the other way round.
    """
    part = text_part(model)
    head = model.get_output_embeddings()
    heads = {"lm_head", SCORE, OTHER_HEADS.get(model.config.model_type, "lm_head")}
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if _is_linear(module)
            and module is not head
            and not heads & set(name.split("."))
            and (part is None or part.fullmatch(name))
        }
    )


@dataclass(frozen=True)
class Targets:
    """What gets LoRA."""

    modules: tuple[str, ...]  # ends of the paths of linear layers and embeddings
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Ends of the paths of weights that are adapted as they are -> how many layers are one in each,
    for which its rank is taken that many times."""


@dataclass(frozen=True)
class _Weight:
    """A weight that peft adapts as a parameter."""

    path: str  # the end of the path by which it is named
    layers: tuple[str, ...]
    """The names of the linear layers that it is made of; empty where it never was any."""

    @property
    def paths(self) -> list[tuple[str, ...]]:
        """By what each of its layers is named: by its own name, or by that of the whole."""
        holder = self.path.rpartition(".")[0]
        whole = self.path.rpartition(".")[2]
        today = IN_ONE.get(whole, self.layers)
        return [
            (self.path, *(f"{holder}.{name}" for name in dict.fromkeys(names)))
            for names in zip(self.layers, today, strict=False)
        ] or [(self.path,)]


def choose_targets(
    model: PreTrainedModel,
    asked: Sequence[str],
    *,
    knob: str = "lora_target",
    cannot_hold: str | None = None,
) -> Targets:
    """What gets LoRA or OFT; `all` stands for everything linear but the head.

    A name may be a module's last name or the end of its path (`mlp.up_proj`). Experts, which
    transformers 5 holds as one weight for all of them, have the names of the linear layers that
    they were (`gate_proj`, `w1`), and their own (`gate_up_proj`).

    Args:
        model: whose modules are chosen from.
        asked: names.
        knob: what says them.
        cannot_hold: a setting that experts do not go with; then `all` leaves them out.

    Raises:
        ModelError: listing the choices, when a name matches nothing or nothing that can be adapted.
    """
    weights = _weights(model)
    if "all" in asked or not asked:
        reached = {end: len(each.layers) for end, each in weights.items() if each.layers}
        left = sorted(weights.keys() - reached.keys())
        why = "which were never linear layers; name them to train them, too"
        if reached and cannot_hold:
            left, why = sorted(weights), f"which cannot be adapted with {cannot_hold}"
        if left:
            console.warn(f"{knob}: all leaves out {', '.join(left)}, {why}")
        names = {layer for each in weights.values() for layer in each.layers}
        plain = tuple(name for name in linear_names(model) if name not in names)
        return Targets(plain, {} if cannot_hold else reached)
    part = text_part(model)
    fitting = [
        name
        for name, module in model.named_modules()
        if _can_adapt(module) and (part is None or part.fullmatch(name))
    ]
    paths = {end: list(chain.from_iterable(each.paths)) for end, each in weights.items()}
    known = {name.rpartition(".")[2] for name in chain(fitting, *paths.values())}
    chosen = {
        end: len(each.paths)
        for end, each in weights.items()
        if any(matches(name, paths[end]) for name in asked)
    }
    in_weights = {name for name in asked for end in chosen if matches(name, paths[end])}
    modules = [name for name in asked if name not in in_weights]
    unknown = [name for name in modules if not matches(name, fitting)]
    if unknown:
        hint = suggest(unknown[0], known)
        raise ModelError(
            f"{knob}: this model has no module {', '.join(map(repr, unknown))} that can be "
            f"adapted.{hint if 'Did you' in hint else ''} Choose from: all, "
            f"{', '.join(sorted(known))}."
        )
    for end in chosen:
        named = [any(matches(name, each) for name in asked) for each in weights[end].paths]
        if not all(named):
            absent = weights[end].paths[named.index(False)][-1].rpartition(".")[2]
            raise ModelError(
                f"{knob}: {end} is several layers in one, which are adapted together. Name "
                f"{absent}, too."
            )
    if chosen and cannot_hold:
        raise ModelError(
            f"{knob}: {', '.join(sorted(chosen))} cannot be adapted with {cannot_hold}. Leave "
            "one of the two out."
        )
    return Targets(tuple(modules), chosen)


def _weights(model: PreTrainedModel) -> dict[str, _Weight]:
    """The experts of a model and what belongs to them, by the ends of their parameters' paths.

    Beside them stand their router, which is a linear layer in all but its class, and the linear
    layers that are called as the experts' own: peft takes those names for the experts.
    """
    found: dict[str, _Weight] = {}
    part = text_part(model)
    modules = dict(model.named_modules())
    converters = [
        (each, [pattern.rpartition(".")[2] for pattern in each.target_patterns])
        for each in get_model_conversion_mapping(model)
        if isinstance(each, WeightConverter)
    ]
    for path, parameter in model.named_parameters():
        owner = path.rpartition(".")[0]
        is_other = part is not None and not part.fullmatch(owner)
        if is_other or len(full_shape(parameter)) != 3 or isinstance(modules[owner], nn.Conv1d):
            continue
        end = _LAYER.sub("", path)
        holder, _, name = end.rpartition(".")
        sources = next((each.source_patterns for each, made in converters if made == [name]), ())
        names = tuple(each.removesuffix(".weight").rpartition(".")[2] for each in sources)
        found[end] = _Weight(end, names)
        for child, module in modules[owner.rpartition(".")[0]].named_children():
            weight = module._parameters.get("weight")
            if names and weight is not None and not _can_adapt(module) and weight.ndim == 2:
                router = f"{holder.rpartition('.')[0]}.{child}"
                found[f"{router}.weight"] = _Weight(router, (child,))
    taken = {name for each in found.values() for name in each.layers}
    for path, module in modules.items():
        name = path.rpartition(".")[2]
        if name in taken and _is_linear(module):
            end = _LAYER.sub("", path)
            found[f"{end}.weight"] = _Weight(end, (name,))
    return found


def number_of_layers(model: PreTrainedModel) -> int:
    """How many layers a model has, by its configuration; a ModelError where that has none."""
    found = count_layers(model.config)
    if found is None:
        raise ModelError(
            f"the layers of {type(model).__name__} cannot be chosen: its configuration has none of "
            f"{', '.join(LAYER_COUNT_NAMES)}. Use full, or lora on all."
        )
    return found


def added_layers(num_layers: int, count: int) -> range:
    """The layers that `luthier model expand` has added: the last of each of `count` groups.

    Raises:
        ModelError: if there are no equal groups.
    """
    if num_layers % count:
        raise ModelError(
            f"freeze_trainable_layers: {count} layers cannot have been added to make {num_layers}, "
            "which is no multiple. Name the number that `luthier model expand --blocks` was given."
        )
    group = num_layers // count
    return range(group - 1, num_layers, group)


def not_adapted(model: PreTrainedModel, finetuning: FinetuningArguments) -> str | None:
    """The paths of modules that get no adapter whatever they are called, as peft takes them."""
    part = text_part(model)
    others = [] if part is None else [f"(?!{part.pattern}$).*"]
    if finetuning.use_llama_pro:
        num_layers = number_of_layers(model)
        added = added_layers(num_layers, finetuning.freeze_trainable_layers)
        old = "|".join(str(each) for each in range(num_layers) if each not in added)
        others.append(rf"(?:.*\.)?\w+\.(?:{old})\..*")
        console.info(f"use_llama_pro: adapters lie on layers {', '.join(map(str, added))}")
    return "|".join(others) or None


def are_stored_crosswise(model: PreTrainedModel, targets: Sequence[str]) -> bool:
    """Whether the targets hold their weight as (in, out), as GPT-2's Conv1D does."""
    return any(
        isinstance(module, Conv1D) and any(matches(target, [name]) for target in targets)
        for name, module in model.named_modules()
    )


def check_saved_modules(model: PreTrainedModel, asked: Sequence[str]) -> None:
    """Refuses names of `additional_target` that the model does not have, listing those it has."""
    names = [name for name, _ in model.named_modules() if name]
    unknown = [name for name in asked if not matches(name, names)]
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


def saved_modules(model: PreTrainedModel, asked: Sequence[str]) -> str:
    """What is trained whole by names of `additional_target`, in words.

    peft compares endings: `norm` means every module whose name ends so.
    """
    names = [name for name, _ in model.named_modules() if name.endswith(tuple(asked))]
    counts = Counter(name.rpartition(".")[2] for name in names)
    return ", ".join(name if n == 1 else f"{name} ({n} times)" for name, n in counts.items())


def matches(asked: str, names: Sequence[str]) -> bool:
    """Whether a name is that of one of the modules, or the end of its path."""
    return any(name == asked or name.endswith(f".{asked}") for name in names)


def _is_linear(module: nn.Module) -> bool:
    kind = type(module).__name__
    return isinstance(module, Conv1D) or ("Linear" in kind and "Embedding" not in kind)


def _can_adapt(module: nn.Module) -> bool:
    return _is_linear(module) or isinstance(module, (nn.Embedding, nn.Conv1d, nn.Conv2d))
