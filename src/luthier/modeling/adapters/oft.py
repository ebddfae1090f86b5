"""`oft`: what a layer reads is rotated, in blocks (Qiu et al. 2023; Qiu et al. 2025, OFTv2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.arguments.choices import ADAPTERS, Adapter
from luthier.arguments.record import Arguments
from luthier.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def prepare(
    model: PreTrainedModel,
    arguments: Arguments,
    *,
    is_trainable: bool,
    checkpoint: Path | None = None,
) -> Any:
    """Merges, resumes or makes adapters, see `beside.py`."""
    from luthier.modeling.adapters.beside import prepare_adapters

    return prepare_adapters(model, arguments, create, is_trainable=is_trainable)


def finish(model: Any, arguments: Arguments, folder: Path) -> None:
    """Reads back what was written."""
    from luthier.modeling.adapters.file import read_back

    read_back(model, folder)


def create(model: PreTrainedModel, arguments: Arguments) -> PeftModel:
    """What `oft_...` asks for, on a model without adapters.

    Raises:
        ModelError: when a name matches nothing, or blocks do not divide what a layer reads.
    """
    from peft import OFTConfig, TaskType, get_peft_model

    from luthier.modeling.adapters.file import HEAD
    from luthier.modeling.adapters.targets import (
        check_saved_modules,
        choose_targets,
        matches,
        not_adapted,
        saved_modules,
    )
    from luthier.modeling.heads import has_score
    from luthier.modeling.vocabulary import embedding_names, is_tied

    finetuning = arguments.finetuning
    saved = finetuning.additional_target
    check_saved_modules(model, saved)
    ends = {*embedding_names(model), HEAD} if is_tied(model) else set()
    if any(name.rpartition(".")[2] in ends for name in saved):
        raise ModelError(
            "finetuning_type: oft cannot train embeddings that are the head as well "
            f"({', '.join(saved)}, by additional_target or for new tokens): peft would make two "
            "matrices of the one. Use lora, or leave the new tokens out."
        )
    chosen = choose_targets(model, finetuning.oft_target, knob="oft_target", cannot_hold="OFT")
    targets = [name for name in chosen.modules if name.rpartition(".")[2] not in saved]
    if not targets:
        raise ModelError(
            f"oft_target: nothing is left that OFT adapts: {', '.join(saved)} are trained whole "
            "(additional_target). Name other modules in one of the two."
        )
    rank, size = finetuning.oft_rank, finetuning.oft_block_size
    for name, module in model.named_modules():
        if not any(matches(target, [name]) for target in targets):
            continue
        width = getattr(module, "in_features", None)
        if width is None:
            kind = type(module).__name__
            raise ModelError(f"oft_target: {name} is {kind}, and OFT adapts only linear layers.")
        if width % (rank or size):
            knob = "oft_rank" if rank else "oft_block_size"
            fitting = [each for each in range(2, 257) if not width % each]
            raise ModelError(
                f"{knob} {rank or size} does not divide what {name} reads, {width:,} numbers. "
                f"Choose from: {', '.join(map(str, fitting))}."
            )
    config = OFTConfig(
        task_type=TaskType.SEQ_CLS if has_score(model) else TaskType.CAUSAL_LM,
        inference_mode=False,
        r=rank,
        oft_block_size=size,
        module_dropout=finetuning.module_dropout,
        target_modules=targets,
        exclude_modules=not_adapted(model, finetuning),
        modules_to_save=list(saved) or None,
    )
    whole = f"; trained whole: {saved_modules(model, saved)}" if saved else ""
    blocks = f"{rank} blocks" if rank else f"blocks of {size}"
    console.info(f"oft: {blocks}, on {', '.join(sorted(targets))}{whole}")
    adapted: PeftModel = get_peft_model(model, config)
    return adapted


ADAPTERS.register("oft")(Adapter(prepare, finish, needs="peft", keeps_apart=True))
