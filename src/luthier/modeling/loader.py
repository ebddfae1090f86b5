"""Arguments -> a model that is ready to train or to answer, step by step."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from luthier import console
from luthier.arguments.choices import ADAPTERS
from luthier.arguments.model import ModelArguments
from luthier.arguments.record import Arguments
from luthier.errors import MissingPackage, ModelError
from luthier.modeling.counts import say_counts
from luthier.modeling.dtypes import Dtypes, cast_trained, choose_dtypes, held_dtypes
from luthier.modeling.quirks import (
    draw_on_terminals_only,
    keep_fewer_products,
    silence_idle_warnings,
)
from luthier.modeling.source import (
    ATTENTION_PACKAGES,
    ModelSource,
    check_weights,
    fetch_model,
    hub_options,
    unreadable,
)
from luthier.modeling.tokenizer import new_tokens, token_descriptions
from luthier.modeling.vocabulary import (
    check_rows_learn,
    embedding_names,
    fit_config,
    grow_vocabulary,
)
from luthier.optional import is_installed, missing

ATTENTION = {
    "disabled": "eager",
    "sdpa": "sdpa",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
}
"""`flash_attn` -> transformers' name for it; `auto` leaves the choice to transformers."""


def load_model(
    arguments: Arguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_trainable: bool,
    checkpoint: Path | None = None,
) -> Any:
    """The model of a run.

    Configuration, attention kernel, rotary scaling, weights, vocabulary, adapter, dtypes, in this
    order; what is chosen is said.

    Args:
        arguments: of the run.
        tokenizer: from `load_tokenizer`, fitted to the template.
        is_trainable: whether weights will learn; otherwise adapters are merged and the model is
            in evaluation mode.
        checkpoint: that a run goes on from, which will put its trained weights in. What PiSSA has
            taken from the frozen ones is in it, too.

    Returns:
        A `PreTrainedModel`, or the `PeftModel` around it.

    Raises:
        ModelError: for everything about the model that a user can mend.
    """
    silence_idle_warnings()
    keep_fewer_products()
    model_args, training = arguments.model, arguments.training
    source = fetch_model(str(model_args.model_name_or_path))
    config = load_config(model_args)
    if model_args.train_from_scratch:
        fit_config(config, tokenizer)
    length = arguments.data.cutoff_len if is_trainable else None
    stretch_rope(config, model_args.rope_scaling, length)
    dtypes = choose_dtypes(
        arguments,
        is_trainable=is_trainable,
        stored=config.dtype,
        is_gguf=source.gguf_file is not None or model_args.train_from_scratch,
    )
    base = _load_weights(
        source, config, model_args, dtypes, is_trainable=is_trainable, use_cpu=training.use_cpu
    )
    _mend_generation(base)
    arguments, is_grown = _grow(base, tokenizer, arguments, is_trainable=is_trainable)
    method = ADAPTERS.get(arguments.finetuning.finetuning_type)
    model = method.prepare(base, arguments, is_trainable=is_trainable, checkpoint=checkpoint)
    if is_trainable:
        if is_grown and isinstance(model, PeftModel):
            check_rows_learn(model)
        _check_something_learns(model)
        cast_trained(model, dtypes.trained)
        _upcast(base, model_args)
        model.train()
    else:
        base.config.use_cache = model_args.use_kv_cache
        model.requires_grad_(False)
        model.eval()
    say_counts(model, is_trainable=is_trainable, with_each=model_args.print_param_status)
    _say_dtypes(model, config.dtype)
    return model


def _say_dtypes(model: nn.Module, stored: torch.dtype | None) -> None:
    held = ", ".join(f"{name} ({kind})" for kind, name in held_dtypes(model).items())
    console.info(f"weights: {held}" + (f"; stored in {str(stored)[6:]}" if stored else ""))


def load_config(model_args: ModelArguments) -> PreTrainedConfig:
    """The model's configuration, with the attention kernel that was asked for.

    Raises:
        ModelError: naming the path, when it cannot be read.
        MissingPackage: when the kernel's package is absent.
    """
    name = str(model_args.model_name_or_path)
    source = fetch_model(name)
    options: dict[str, Any] = hub_options(model_args)
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
    implementation = _attention(model_args.flash_attn)
    if implementation is not None:
        options["attn_implementation"] = implementation
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source.path, **options)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        raise unreadable(name, "configuration", problem) from problem
    return config


def _attention(asked: str) -> str | None:
    if asked == "auto":
        return None
    package = ATTENTION_PACKAGES.get(asked)
    if package is not None:
        if not is_installed(package):
            raise MissingPackage(missing(package, f"flash_attn: {asked}"))
        if not torch.cuda.is_available():
            raise ModelError(
                f"flash_attn: {asked} needs a GPU, and there is none. Use sdpa or auto."
            )
    return ATTENTION[asked]


def _load_weights(
    source: ModelSource,
    config: PreTrainedConfig,
    model_args: ModelArguments,
    dtypes: Dtypes,
    *,
    is_trainable: bool,
    use_cpu: bool,
) -> PreTrainedModel:
    kind = (
        AutoModelForImageTextToText
        if type(config) in AutoModelForImageTextToText._model_mapping
        else AutoModelForCausalLM
    )
    options: dict[str, Any] = {"dtype": dtypes.weights}
    try:
        if model_args.train_from_scratch:
            console.info("weights: random (train_from_scratch)")
            trusted = model_args.trust_remote_code
            model: PreTrainedModel = kind.from_config(config, trust_remote_code=trusted, **options)
            return model
        check_weights(source)
        if source.gguf_file:
            draw_on_terminals_only()
            options |= {"gguf_file": source.gguf_file, "quantization_config": _unpacked()}
        else:
            options["use_safetensors"] = True
        is_whole = not (is_trainable or is_deepspeed_zero3_enabled())
        options["device_map"] = _answering_devices(use_cpu) if is_whole else None
        model, report = kind.from_pretrained(
            source.path,
            config=config,
            output_loading_info=True,
            **options,
            **hub_options(model_args),
        )
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as problem:
        raise unreadable(str(model_args.model_name_or_path), "model", problem) from problem
    _check_complete(source, report["missing_keys"])
    return model


def _unpacked() -> Any:
    """Asks for plain weights of a GGUF file's blocks; packed ones cannot be trained or saved."""
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)


def _answering_devices(use_cpu: bool) -> str | dict[str, int] | None:
    """All GPUs together; of several processes, each its own."""
    if use_cpu or not torch.cuda.is_available():
        return None
    rank = os.environ.get("LOCAL_RANK")
    return "auto" if rank is None else {"": int(rank)}


def _check_complete(source: ModelSource, absent: Collection[str]) -> None:
    if absent:
        first = ", ".join(sorted(absent)[:3])
        raise ModelError(
            f"{source} lacks {len(absent):,} of the weights that its configuration describes "
            f"({first}{' ...' if len(absent) > 3 else ''}); they would start at random. Complete "
            "the download, or look whether config.json belongs to these weights."
        )


def _grow(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Arguments,
    *,
    is_trainable: bool,
) -> tuple[Arguments, bool]:
    is_grown = grow_vocabulary(
        model,
        tokenizer,
        new_tokens=new_tokens(tokenizer),
        init=arguments.model.init_special_tokens,
        descriptions=token_descriptions(arguments.model),
    )
    finetuning = arguments.finetuning
    asked = finetuning.additional_target
    if not is_grown and (asked or not arguments.model.resize_vocab):
        return arguments, is_grown
    names = [name for name in embedding_names(model) if name not in asked]
    if is_trainable and names and ADAPTERS.get(finetuning.finetuning_type).keeps_apart:
        added = f"{', '.join(names)}{' as well' if asked else ''}"
        console.info(f"additional_target = {added} (the vocabulary has new tokens)")
    return arguments.changed(additional_target=(*asked, *names)), is_grown


def _check_something_learns(model: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "no parameter learns. With finetuning_type: freeze, set freeze_trainable_layers to "
            "other than 0; with lora, name modules in lora_target."
        )


def _mend_generation(model: PreTrainedModel) -> None:
    """Sampling settings without `do_sample` make the library refuse to save the model."""
    generation = model.generation_config
    if generation is None or generation.do_sample:
        return
    settings = (generation.temperature, generation.top_p, generation.typical_p)
    if any(value not in (None, 1.0) for value in settings):
        generation.do_sample = True


def _upcast(model: PreTrainedModel, model_args: ModelArguments) -> None:
    if model_args.upcast_layernorm:
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and any(word in name for word in ("norm", "ln")):
                parameter.data = parameter.data.float()
    learned = [each for each in model.get_input_embeddings().parameters() if each.requires_grad]
    if any(each.dtype == torch.float32 for each in learned):
        # what they give is float32, and beside it torch's layer_norm takes no halves on a CPU
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()
    head = model.get_output_embeddings()
    if model_args.upcast_lmhead_output and isinstance(head, nn.Module):
        head.register_forward_hook(lambda module, inputs, output: output.float())


INFERENCE_FACTOR = 2


def stretch_rope(config: PreTrainedConfig, method: str | None, length: int | None) -> None:
    """Sets a rotary scaling and the longer maximum on a configuration, in place.

    The factor is the whole number of old maxima that `length` needs, 2 when nothing is trained.
    `rope_theta` and whatever else the configuration says of its rotary positions is kept.

    Args:
        config: of the model.
        method: linear, dynamic, yarn or llama3 (`rope_scaling`); None changes nothing.
        length: the longest training example (`cutoff_len`); None when nothing is trained.

    Raises:
        ModelError: if the model has no rotary positions, or several kinds of them.
    """
    if method is None:
        return
    text = config.get_text_config()
    known = text.to_dict()
    current = known.get("rope_parameters") or {}
    maximum = current.get("original_max_position_embeddings", known.get("max_position_embeddings"))
    if "rope_theta" not in current or not maximum:
        raise ModelError(
            f"rope_scaling: {method} does not fit {config.model_type}: its configuration has no "
            "single rope_theta with a max_position_embeddings. Leave rope_scaling out."
        )
    if length is not None and length <= maximum:
        console.warn(
            f"rope_scaling: {method} is not used, because cutoff_len {length:,} is within the "
            f"model's own {maximum:,} positions"
        )
        return
    factor = INFERENCE_FACTOR if length is None else math.ceil(length / maximum)
    scaling = {"rope_type": method, "factor": float(factor)}
    if method != "linear":
        scaling["original_max_position_embeddings"] = int(maximum)
    if method == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    kept = {
        name: current[name] for name in ("rope_theta", "partial_rotary_factor") if name in current
    }
    text.rope_parameters = kept | scaling
    text.max_position_embeddings = int(maximum) * factor
    console.info(f"rope_scaling = {method}, factor {factor}: {maximum:,} -> {maximum * factor:,}")
    if method == "dynamic" and length is not None:
        console.warn(
            "rope_scaling: dynamic changes with the length of each batch; linear, yarn and llama3 "
            "train as they will be used"
        )
