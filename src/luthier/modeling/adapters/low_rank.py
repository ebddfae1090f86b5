"""A new LoRA in peft's form (Hu et al. 2021).

With rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024) and PiSSA (Meng et al. 2024).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from luthier import console
from luthier.arguments.finetuning import FinetuningArguments
from luthier.arguments.record import Arguments
from luthier.errors import ModelError
from luthier.modeling.adapters.file import HEAD, tie_head
from luthier.modeling.adapters.pissa import start_pissa
from luthier.modeling.adapters.targets import (
    are_stored_crosswise,
    check_saved_modules,
    choose_targets,
    not_adapted,
    saved_modules,
)
from luthier.modeling.heads import has_score
from luthier.modeling.vocabulary import embedding_names, is_tied


def create_lora(
    model: PreTrainedModel, arguments: Arguments, *, checkpoint: Path | None = None
) -> PeftModel:
    """What `lora_...` and `use_...` ask for, on a model without adapters.

    A `checkpoint` that a run goes on from holds what a PiSSA run began with.

    Raises:
        ModelError: when the arguments do not fit the model.
    """
    finetuning = arguments.finetuning
    rank, alpha = finetuning.lora_rank, finetuning.lora_alpha or 2 * finetuning.lora_rank
    saved = finetuning.additional_target
    check_saved_modules(model, saved)
    chosen = choose_targets(model, finetuning.lora_target, cannot_hold=_no_experts(finetuning))
    # peft ties what learns only when it meets a name it knows, which gpt2's wte is not
    ends = tuple(dict.fromkeys((*embedding_names(model), HEAD))) if is_tied(model) else ()
    ties = meet(saved, ends)
    if ties:
        saved = tuple(dict.fromkeys((*saved, *ends)))
    targets = [name for name in chosen.modules if not meet([name], saved)]
    if meet(targets, ends) and not finetuning.use_dora:  # whose rows and columns have sizes
        ties, targets = True, list(dict.fromkeys((*targets, *ends)))
    several = {name: count for name, count in chosen.parameters.items() if count > 1}
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if has_score(model) else TaskType.CAUSAL_LM,
        inference_mode=False,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=finetuning.lora_dropout,
        target_modules=targets,
        target_parameters=list(chosen.parameters) or None,
        rank_pattern={name: count * rank for name, count in several.items()},
        alpha_pattern={
            name: alpha * (count**0.5 if finetuning.use_rslora else count)
            for name, count in several.items()
        },
        exclude_modules=not_adapted(model, finetuning),
        fan_in_fan_out=are_stored_crosswise(model, targets),
        modules_to_save=list(saved) or None,
        use_rslora=finetuning.use_rslora,
        use_dora=finetuning.use_dora,
        ensure_weight_tying=ties,
    )
    whole = f"; trained whole: {saved_modules(model, saved)}" if saved else ""
    places = ", ".join(sorted({*targets, *chosen.parameters}))
    console.info(f"lora: rank {rank}, alpha {alpha}, on {places}{whole}")
    if ties:
        console.info(f"{' and '.join(ends)} are one matrix, and learn as one")
    if not (targets or chosen.parameters):
        raise ModelError(
            f"lora_target: nothing is left that LoRA adapts: {', '.join(saved)} are trained whole "
            "(additional_target). Name other modules in one of the two."
        )
    try:
        adapted = get_peft_model(model, config)
    except (TypeError, ValueError) as problem:
        raise ModelError(
            f"lora_target, additional_target: {', '.join((*targets, *saved))} cannot be adapted "
            f"and trained whole together: {problem}"
        ) from problem
    tie_head(adapted)
    if finetuning.pissa_init:
        start_pissa(adapted, arguments, checkpoint)
    return adapted


def meet(names: Iterable[str], others: Collection[str]) -> bool:
    """Whether any module's name, be it the end of its path, is among others."""
    return any(name.rpartition(".")[2] in others for name in names)


def _no_experts(finetuning: FinetuningArguments) -> str | None:
    """With what LoRA cannot lie on experts, which are one parameter for all of them."""
    if finetuning.lora_dropout > 0:
        return "lora_dropout"
    if finetuning.use_dora:
        return "use_dora"
    if finetuning.pissa_init:
        return "pissa_init"
    if finetuning.use_llama_pro:  # peft adapts a parameter in all layers
        return "use_llama_pro"
    # peft 0.21.2 calls a layer out of the order in which DeepSpeed 0.19.8 fetches its weights
    return "DeepSpeed ZeRO stage 3" if is_deepspeed_zero3_enabled() else None
