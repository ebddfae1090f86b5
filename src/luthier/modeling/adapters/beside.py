"""Adapters in peft's form beside the weights of a model: made, gone on with, merged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer, onload_layer
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from luthier import console
from luthier.arguments.record import Arguments, facts
from luthier.errors import ModelError
from luthier.modeling.adapters.file import adapts_tied, tie_head
from luthier.modeling.adapters.pissa import take_apart_again
from luthier.modeling.adapters.targets import linear_names
from luthier.modeling.heads import SCORE, has_score, lacks_score
from luthier.modeling.source import check_adapter, hub_options


def prepare_adapters(
    model: PreTrainedModel,
    arguments: Arguments,
    create: Callable[[PreTrainedModel, Arguments], PeftModel],
    *,
    is_trainable: bool,
) -> Any:
    """Merges, resumes or makes adapters on a model without any.

    Given adapters are merged into the model one after the other; in training the last one is
    trained on instead, unless `create_new_adapter`. Where merging would be wrong (quantised
    weights, ZeRO-3, one matrix of embeddings and head) the one adapter that is allowed stays
    beside the weights. `create` makes a new one.

    Returns:
        The peft model; the plain model when nothing is trained and everything is merged.

    Raises:
        ModelError: when an adapter or the arguments do not fit the model.
    """
    model.requires_grad_(False)
    adapters = list(arguments.model.adapter_name_or_path)
    for adapter in adapters:
        check_adapter(adapter, arguments.model.adapter_folder)
    is_new = arguments.finetuning.create_new_adapter
    why = "quantised weights" if getattr(model, "is_quantized", False) else ""
    why = "DeepSpeed ZeRO-3" if is_deepspeed_zero3_enabled() else why
    if why and (len(adapters) > 1 or (adapters and is_trainable and is_new)):
        raise ModelError(_cannot_merge(why, adapters[0]))
    unmerged = adapters[-1:] if why or (is_trainable and not is_new) else []
    for number, adapter in enumerate(adapters[: len(adapters) - len(unmerged)], start=1):
        loaded = load_adapter(model, adapter, arguments)
        if adapts_tied(loaded):
            if number < len(adapters) or is_trainable:
                raise ModelError(_cannot_merge("the one matrix of embeddings and head", adapter))
            console.info(f"adapter {adapter}: beside the weights (embeddings and head are one)")
            return loaded
        model = merge_adapter(loaded)
        console.info(f"adapter {adapter}: merged")
    if unmerged:
        linear = linear_names(model)
        loaded = load_adapter(model, unmerged[0], arguments, is_trainable=is_trainable)
        doing = "trained on" if is_trainable else "beside the weights"
        console.info(f"adapter {unmerged[0]}: {doing}")
        if is_trainable:
            _tell_what_stays(loaded, unmerged[0], arguments, linear)
        return loaded
    if not is_trainable:
        return model
    return create(model, arguments)


def _cannot_merge(why: str, adapter: str) -> str:
    return (
        f"adapter_name_or_path: {adapter} cannot be merged into {why}, so it is the only adapter "
        "that can be given, and the one that is trained on. Leave the others out."
    )


def _tell_what_stays(
    model: PeftModel, adapter: str, arguments: Arguments, linear: Collection[str]
) -> None:
    config, finetuning = model.active_peft_config, arguments.finetuning
    kind = config.peft_type.value
    how = f"rank {config.r}, alpha {config.lora_alpha}" if isinstance(config, LoraConfig) else kind
    other = ["pissa_init"] if finetuning.pissa_init else []
    for name, known in facts().items():
        is_its = finetuning.finetuning_type in known.methods and known.in_peft
        if is_its and arguments.given(name):
            asked, own = getattr(finetuning, name), getattr(config, known.in_peft, None)
            if isinstance(asked, tuple):
                asked = set(linear) if "all" in asked else set(asked)
                is_same = isinstance(own, str) or asked == set(own or ())
            else:
                is_same = asked == own
            other += [] if is_same else [name]
    if other:
        console.info(
            f"adapter {adapter} goes on as it is ({how}): "
            f"{', '.join(other)} ha{'s' if len(other) == 1 else 've'} no effect; "
            "create_new_adapter: true merges it and begins a new one"
        )


def load_adapter(
    model: PreTrainedModel, adapter: str, arguments: Arguments, *, is_trainable: bool = False
) -> PeftModel:
    """A saved adapter beside the weights of a model; a ModelError where it does not fit it."""
    options = hub_options(arguments.model)
    del options["trust_remote_code"]
    if arguments.model.adapter_folder:
        options["subfolder"] = arguments.model.adapter_folder
    options.setdefault("subfolder", None)
    if Path(adapter).expanduser().is_dir():
        adapter = str(Path(adapter).expanduser())
    try:
        config = PeftConfig.from_pretrained(adapter, **options)
        began = str(getattr(config, "init_lora_weights", ""))
        if began.startswith("pissa"):
            console.warn(_redrawn(adapter, began))
            config.init_lora_weights = True
        is_new = has_score(model) and config.task_type != TaskType.SEQ_CLS
        if has_score(model) and not is_new and lacks_score(adapter, options["subfolder"]):
            raise ValueError("it has no score, which a reward model saves with its adapter")
        if config.is_prompt_learning:
            raise ValueError(f"it is {config.peft_type.value}, which is not read here")
        options["use_safetensors"] = True
        if is_new:
            config.inference_mode = not is_trainable
            loaded = _beside_score(model, config, load_peft_weights(adapter, "cpu", **options))
        else:
            loaded = PeftModel.from_pretrained(
                model, adapter, config=config, is_trainable=is_trainable, **options
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as problem:
        raise ModelError(
            f"adapter_name_or_path: {adapter} does not fit the model: {problem}\n  Give the "
            "adapter with the base model it was trained on (base_model_name_or_path in its "
            "adapter_config.json), and the same added tokens."
        ) from problem
    if began.startswith("pissa"):
        take_apart_again(loaded, began, arguments.training.seed)
    tie_head(loaded)
    return loaded


def _beside_score(
    model: PreTrainedModel, config: PeftConfig, weights: dict[str, Tensor]
) -> PeftModel:
    """An adapter that has learned to predict tokens, on a model with a score that it has not."""
    config.task_type = TaskType.SEQ_CLS
    score = model.get_submodule(SCORE).state_dict()
    loaded: Any = get_peft_model(model, config)
    own = {f"base_model.model.{SCORE}.{name}": each for name, each in score.items()}
    set_peft_model_state_dict(loaded, weights | own)
    return loaded


def merge_adapter(loaded: PeftModel) -> PreTrainedModel:
    """The plain model with its adapter added to the weights, in place, a layer at a time.

    Weights in half precision are added to in float32 and rounded once. What is merged is looked at
    for numbers that are none.

    Raises:
        ModelError: if it has any.
    """
    for name, module in loaded.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        with onload_layer(module):  # where it was put off a full device
            weights = list(module.get_base_layer().parameters(recurse=False))
            dtypes = [each.dtype for each in weights]
            for each in weights:
                if each.dtype in (torch.bfloat16, torch.float16):
                    each.data = each.data.float()
            try:
                module.merge(safe_merge=True)
            except ValueError as problem:
                raise ModelError(
                    f"the adapter cannot be merged: {name}: {problem}. Take an earlier checkpoint."
                ) from problem
            for each, dtype in zip(weights, dtypes, strict=True):
                each.data = each.data.to(dtype)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return loaded.merge_and_unload()  # of what is merged only the layers are put back


def _redrawn(adapter: str, started: str) -> str:
    if started == "pissa":
        return (
            f"adapter {adapter} was saved as PiSSA makes it: the weights are taken apart anew, "
            "which gives what it was trained with up to rounding. A converted one needs nothing of "
            "that."
        )
    return (
        f"adapter {adapter} was saved as PiSSA makes it, without what it began with, and its fast "
        f"decomposition ({started}) draws at random: the weights that it is put on now are others "
        "than those it was trained with, and so is the model. Have it converted to a plain LoRA "
        "where it was trained (pissa_convert, or peft's path_initial_model_for_weight_conversion)."
    )
