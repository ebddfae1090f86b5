"""`lora`: low-rank updates beside the frozen weights, in peft's form (Hu et al. 2021).

With rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024) and PiSSA (Meng et al. 2024).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from luthier import console
from luthier.arguments.finetuning import FinetuningArguments
from luthier.arguments.record import Arguments
from luthier.errors import ModelError
from luthier.modeling.adapters.registry import ADAPTERS
from luthier.modeling.adapters.targets import (
    are_stored_crosswise,
    check_saved_modules,
    choose_targets,
)
from luthier.modeling.source import check_adapter, hub_options
from luthier.modeling.vocabulary import embedding_names, is_tied


@ADAPTERS.register("lora")
def prepare(model: PreTrainedModel, arguments: Arguments, *, is_trainable: bool) -> Any:
    """Merges, resumes or makes adapters.

    Given adapters are merged into the model one after the other; in training the last one is
    trained on instead, unless `create_new_adapter`. Where merging would be wrong (quantised
    weights, ZeRO-3) the one adapter that is allowed stays beside the weights.

    Returns:
        The peft model; the plain model when nothing is trained and everything is merged.
    """
    model.requires_grad_(False)
    adapters = list(arguments.model.adapter_name_or_path)
    for adapter in adapters:
        check_adapter(adapter, arguments.model.adapter_folder)
    unmerged = _unmerged(model, adapters, arguments, is_trainable=is_trainable)
    for adapter in adapters[: len(adapters) - len(unmerged)]:
        model = _load(model, adapter, arguments).merge_and_unload(safe_merge=True)
        console.info(f"adapter {adapter}: merged")
    if unmerged:
        peft_model = _load(model, unmerged[0], arguments, is_trainable=is_trainable)
        doing = "trained on" if is_trainable else "beside the weights"
        console.info(f"adapter {unmerged[0]}: {doing}")
        return peft_model
    return _create(model, arguments) if is_trainable else model


def _unmerged(
    model: PreTrainedModel, adapters: list[str], arguments: Arguments, *, is_trainable: bool
) -> list[str]:
    why = "quantised weights" if getattr(model, "is_quantized", False) else ""
    why = "DeepSpeed ZeRO-3" if is_deepspeed_zero3_enabled() else why
    is_new = arguments.finetuning.create_new_adapter
    if why and (len(adapters) > 1 or (adapters and is_trainable and is_new)):
        raise ModelError(
            f"adapter_name_or_path: adapters cannot be merged into {why}, so one adapter can be "
            "given and it is trained on. Merge the others into the model first."
        )
    return adapters[-1:] if why or (is_trainable and not is_new) else []


def _load(
    model: PreTrainedModel, adapter: str, arguments: Arguments, *, is_trainable: bool = False
) -> PeftModel:
    options = hub_options(arguments.model)
    del options["trust_remote_code"]
    if arguments.model.adapter_folder:
        options["subfolder"] = arguments.model.adapter_folder
    if Path(adapter).expanduser().is_dir():
        adapter = str(Path(adapter).expanduser())
    try:
        return PeftModel.from_pretrained(
            model, adapter, is_trainable=is_trainable, use_safetensors=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError) as problem:
        raise ModelError(
            f"adapter_name_or_path: {adapter} does not fit the model: {problem}\n  Give the "
            "adapter with the base model it was trained on (base_model_name_or_path in its "
            "adapter_config.json), and the same added tokens."
        ) from problem


def _create(model: PreTrainedModel, arguments: Arguments) -> PeftModel:
    finetuning = arguments.finetuning
    targets = choose_targets(model, finetuning.lora_target)
    saved = finetuning.additional_target
    check_saved_modules(model, saved)
    targets = [name for name in targets if name not in saved]
    ties = is_tied(model) and bool(set(saved) & {*embedding_names(model), "lm_head"})
    if ties:  # peft ties what learns only when it meets a name it knows, which gpt2's wte is not
        saved = tuple(dict.fromkeys((*embedding_names(model), *saved, "lm_head")))
    rank, alpha = finetuning.lora_rank, finetuning.lora_alpha or 2 * finetuning.lora_rank
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        inference_mode=False,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=finetuning.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=are_stored_crosswise(model, targets),
        modules_to_save=list(saved) or None,
        use_rslora=finetuning.use_rslora,
        use_dora=finetuning.use_dora,
        init_lora_weights=_start(finetuning),
        ensure_weight_tying=ties,
    )
    whole = f"; trained whole: {', '.join(saved)}" if saved else ""
    console.info(f"lora: rank {rank}, alpha {alpha}, on {', '.join(sorted(targets))}{whole}")
    return get_peft_model(model, config)


def _start(finetuning: FinetuningArguments) -> str | bool:
    if not finetuning.pissa_init:
        return True
    return "pissa" if finetuning.pissa_iter == -1 else f"pissa_niter_{finetuning.pissa_iter}"
