"""Arguments -> a model that is ready to train or to answer, step by step."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from luthier import console
from luthier.arguments.choices import ADAPTERS
from luthier.arguments.model import ModelArguments
from luthier.arguments.record import Arguments, facts
from luthier.errors import MissingPackage, ModelError
from luthier.modeling.counts import say_counts
from luthier.modeling.dtypes import cast_trained, choose_dtypes, held_dtypes, upcast
from luthier.modeling.heads import (
    SCORE,
    check_kind,
    find_value_head,
    scores_already,
    settle_score,
)
from luthier.modeling.quirks import (
    draw_on_terminals_only,
    keep_fewer_products,
    silence_idle_warnings,
)
from luthier.modeling.source import (
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
    scores: bool = False,
    checkpoint: Path | None = None,
    adapts: bool = True,
) -> Any:
    """The model of a run.

    Configuration, attention kernel, rotary scaling, weights, vocabulary, adapter, dtypes, in this
    order; what is chosen is said.

    Args:
        arguments: of the run.
        tokenizer: from `load_tokenizer`, fitted to the template.
        is_trainable: whether weights will learn; otherwise adapters are merged and the model is
            in evaluation mode.
        scores: whether it says one number of a sequence, see `heads.py`; otherwise what comes next.
        checkpoint: that a run goes on from, which will put its trained weights in. What PiSSA has
            taken from the frozen ones is in it, too.
        adapts: whether the method and the adapters are applied; otherwise the caller does that.

    Returns:
        A `PreTrainedModel`, or the `PeftModel` around it.

    Raises:
        ModelError: for everything about the model that a user can mend.
    """
    silence_idle_warnings()
    keep_fewer_products()
    model_args = arguments.model
    source = fetch_model(str(model_args.model_name_or_path))
    config = load_config(model_args)
    brings_score = scores_already(config) and not model_args.train_from_scratch
    is_asked = scores and not brings_score and not model_args.train_from_scratch
    value_head = find_value_head(model_args) if is_asked else None
    is_known = check_kind(
        config, model_args, scores=scores, is_trainable=is_trainable, value_head=value_head
    )
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
    # all GPUs answer together; of several processes, each on its own
    devices: str | dict[str, int] | None = None
    is_whole = not (is_trainable or is_deepspeed_zero3_enabled())
    if is_whole and not arguments.training.use_cpu and torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")
        devices = "auto" if rank is None else {"": int(rank)}
    base = _load_weights(
        source,
        config,
        model_args,
        dtypes.weights,
        devices,
        scores=scores,
        draws_score=scores and not brings_score,
    )
    if scores:
        seed = arguments.training.seed
        settle_score(base, tokenizer, is_new=not brings_score, seed=seed, value_head=value_head)
        if not is_known:
            console.info("score: a new head, drawn by seed")
    generation = getattr(base, "generation_config", None)  # of what answers
    if generation is not None and not generation.do_sample:
        settings = (generation.temperature, generation.top_p, generation.typical_p)
        if any(value not in (None, 1.0) for value in settings):
            generation.do_sample = True  # without it the library refuses to save the model

    method = ADAPTERS.get(arguments.finetuning.finetuning_type)
    is_grown = grow_vocabulary(
        base,
        tokenizer,
        new_tokens=new_tokens(tokenizer),
        init=model_args.init_special_tokens,
        descriptions=token_descriptions(model_args),
    )
    asked = arguments.finetuning.additional_target
    if is_grown or (model_args.resize_vocab and not asked):
        names = [name for name in embedding_names(base) if name not in asked]
        if is_trainable and names and method.keeps_apart:
            added = f"{', '.join(names)}{' as well' if asked else ''}"
            console.info(f"additional_target = {added} (the vocabulary has new tokens)")
        arguments = arguments.changed(additional_target=(*asked, *names))
    model: Any = base
    if adapts:
        model = method.prepare(base, arguments, is_trainable=is_trainable, checkpoint=checkpoint)
    if is_trainable:
        if is_grown and isinstance(model, PeftModel):
            check_rows_learn(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ModelError(
                "no parameter learns. With finetuning_type: freeze, set freeze_trainable_layers to "
                "other than 0; with lora, name modules in lora_target."
            )
        cast_trained(model, dtypes.trained)
        if scores:
            getattr(base, SCORE).float()
        upcast(base, norms=model_args.upcast_layernorm, head_output=model_args.upcast_lmhead_output)
        model.train()
    else:
        base.config.use_cache = model_args.use_kv_cache
        model.requires_grad_(False)
        model.eval()
    say_counts(model, is_trainable=is_trainable, with_each=model_args.print_param_status)
    held = ", ".join(f"{name} ({kind})" for kind, name in held_dtypes(model).items())
    stored = f"; stored in {str(config.dtype)[6:]}" if config.dtype else ""
    console.info(f"weights: {held}{stored}")
    return model


def load_config(model_args: ModelArguments) -> PreTrainedConfig:
    """The model's configuration, with the attention kernel that was asked for."""
    name = str(model_args.model_name_or_path)
    source = fetch_model(name)
    options: dict[str, Any] = hub_options(model_args)
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
    asked = model_args.flash_attn
    for said, package in facts()["flash_attn"].needed("flash_attn", asked):
        if not is_installed(package):
            raise MissingPackage(missing(package, said))
        if not torch.cuda.is_available():
            raise ModelError(f"{said} needs a GPU, and there is none. Use sdpa or auto.")
    if asked != "auto":
        options["attn_implementation"] = ATTENTION[asked]
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source.path, **options)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        raise unreadable(name, "configuration", problem) from problem
    return config


def model_kind(config: PreTrainedConfig, *, scores: bool) -> Any:
    """The library's class that loads a configuration: one that scores, or one that says tokens."""
    if scores:
        return AutoModelForSequenceClassification
    if type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _load_weights(
    source: ModelSource,
    config: PreTrainedConfig,
    model_args: ModelArguments,
    dtype: torch.dtype | str,
    devices: str | dict[str, int] | None,
    *,
    scores: bool,
    draws_score: bool,
) -> PreTrainedModel:
    kind = model_kind(config, scores=scores)
    options: dict[str, Any] = {"dtype": dtype}
    try:
        if model_args.train_from_scratch:
            console.info("weights: random (train_from_scratch)")
            trusted = model_args.trust_remote_code
            model: PreTrainedModel = kind.from_config(config, trust_remote_code=trusted, **options)
            return model
        check_weights(source)
        if source.gguf_file:
            from transformers import GgufConfig

            draw_on_terminals_only()
            # plain weights of a GGUF file's blocks; packed ones cannot be trained or saved
            unpacked = GgufConfig(dequantize=True)
            options |= {"gguf_file": source.gguf_file, "quantization_config": unpacked}
        else:
            options["use_safetensors"] = True
        loud = logging.get_verbosity()
        if draws_score:  # which is said here, and no advice to learn it is due
            logging.set_verbosity_error()
        try:
            model, report = kind.from_pretrained(
                source.path,
                config=config,
                output_loading_info=True,
                device_map=devices,
                **options,
                **hub_options(model_args),
            )
        finally:
            logging.set_verbosity(loud)
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as problem:
        raise unreadable(str(model_args.model_name_or_path), "model", problem) from problem
    absent = sorted({*report["missing_keys"]} - ({f"{SCORE}.weight"} if draws_score else set()))
    if absent:
        raise ModelError(
            f"{source} lacks {len(absent):,} of the weights that its configuration describes "
            f"({', '.join(absent[:3])}{' ...' if len(absent) > 3 else ''}); they would start at "
            "random. Complete the download, or look whether config.json belongs to these weights."
        )
    return model


INFERENCE_FACTOR = 2


def stretch_rope(config: PreTrainedConfig, method: str | None, length: int | None) -> None:
    """Sets a rotary scaling (`rope_scaling`) and the longer maximum on a configuration, in place.

    The factor is the whole number of old maxima that `length`, the longest training example, needs;
    2 when nothing is trained. `rope_theta` and whatever else the configuration says of its rotary
    positions is kept.

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
