"""A base with adapters -> a folder of its own: merged, proven, read back, published whole."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from luthier import console
from luthier.arguments.record import Arguments
from luthier.checkpoints.pretrained import PretrainedFiles
from luthier.checkpoints.publish import describe
from luthier.errors import ModelError
from luthier.exporting.adapter import find_adapter, write_adapter
from luthier.exporting.base import check_base, check_plain
from luthier.exporting.card import write_card
from luthier.exporting.gguf_file import check_gguf, estimate_bytes, write_gguf
from luthier.exporting.gguf_file import read_back as read_gguf_back
from luthier.exporting.ollama import find_template, write_modelfile
from luthier.exporting.place import check_target, free_bytes, new_manifest, staged
from luthier.exporting.proof import (
    BOUNDS,
    Probe,
    Reading,
    answer,
    compare,
    find_probes,
    judge,
    judge_effect,
    read,
)
from luthier.modeling.adapters.beside import load_adapter, merge_adapter
from luthier.modeling.adapters.file import FILE, adapts_tied
from luthier.modeling.dtypes import is_emulated
from luthier.modeling.heads import VALUE_HEAD, has_score, settle_score
from luthier.modeling.loader import load_config, load_model, model_kind
from luthier.modeling.safe_loading import reading_plain_data
from luthier.modeling.source import WEIGHTS, fetch_model, hub_options
from luthier.modeling.tokenizer import load_tokenizer
from luthier.modeling.vocabulary import is_tied
from luthier.serving.run_folder import record_of
from luthier.stages.stage import STAGES, Stage
from luthier.templates.fit import Fitted, fit_chat_template
from luthier.templates.template import Template
from luthier.training.encoder import fit_template

BESIDE_WEIGHTS = 32 << 20
"""Bytes that tokenizer, configuration and card take at most."""


@dataclass(frozen=True)
class Merged:
    """What is known of a merged model when it is no longer in memory."""

    kind: type[Any]  # its class
    attention: str  # its attention kernel
    device: torch.device  # where it was
    is_slow: bool  # whether its dtype is none of the processor's
    probes: list[Probe]  # what it was asked
    readings: list[Reading]  # and said


def export(arguments: Arguments) -> Path:
    """Writes the model that the arguments name, its adapters merged, to `export_dir`.

    The merged model is compared with base and adapter, and read back from the disk and compared
    again, before the folder gets its name.

    Raises:
        CheckpointError: if the folder is full, a link or no folder.
        SaveError: if it cannot be written.
        ModelError: if the base is not the adapter's, or the merged model is not what was trained.
    """
    disable_progress_bar()
    for note in arguments.notes:
        if " = " not in note:  # what training would have inferred
            console.info(note)
    folder = Path(str(arguments.exporting.export_dir)).expanduser().absolute()
    check_target(folder)
    check_base(arguments)
    if arguments.exporting.export_device == "cpu":
        arguments = arguments.changed(use_cpu=True)
    with reading_plain_data():
        config = load_config(arguments.model)
        check_plain(config, arguments.model)
        stage = STAGES.get(arguments.finetuning.stage)(arguments)
        write = _export_adapter if arguments.exporting.adapter else _export_merged
        write(arguments, config, stage, folder)
    console.info(f"exported: {folder}")
    if arguments.exporting.export_hub_model_id is not None:
        _upload(arguments, folder)
    return folder


def _export_merged(
    arguments: Arguments, config: PreTrainedConfig, stage: Stage, folder: Path
) -> None:
    asked = arguments.exporting
    stored = _stored_dtype(arguments, config)
    dtype = _chosen_dtype(arguments, stored)
    if asked.gguf is not None:
        check_gguf(config, asked.gguf, scores=stage.scores)
    if asked.ollama and stage.scores:
        raise ModelError("ollama: a reward model says no tokens, so it answers nothing there.")
    last = [str(arguments.model.model_name_or_path), *arguments.model.adapter_name_or_path][-1]
    if not stage.scores and (head := Path(last).expanduser() / VALUE_HEAD).is_file():
        console.warn(f"{head} is left out: stage: rm exports the model with its score")
    needed = _show_sizes(arguments, config, dtype, folder, scores=stage.scores)
    tokenizer, fitted = _load_tokenizer(arguments, stage)
    told = find_template(stage.template, tokenizer) if asked.ollama else None
    with staged(folder, needed, new_manifest(arguments.training.seed)) as place:
        merged = _write_merged(arguments, stage, tokenizer, fitted, place, (stored, dtype))
        write_card(place, folder.name, arguments, scores=stage.scores)
        gc.collect()
        _read_back(merged, place, tokenizer, arguments)
        if asked.gguf is not None:
            gc.collect()
            held = torch.float32 if merged.is_slow else dtype
            _add_gguf(place, folder.name, asked.gguf, merged.probes, held)
        if told is not None:
            write_modelfile(
                place,
                told,
                tokenizer,
                source=next((f"./{file.name}" for file in place.glob("*.gguf")), "."),
                stops=tokenizer.convert_ids_to_tokens(list(fitted.stop_token_ids)),
                context=config.get_text_config().max_position_embeddings,
            )


def _export_adapter(
    arguments: Arguments, config: PreTrainedConfig, stage: Stage, folder: Path
) -> None:
    source = find_adapter(arguments)
    size = (source / FILE).stat().st_size
    free = console.gibibytes(free_bytes(folder))
    console.info(f"  adapter of {console.gibibytes(size)}; free disk {free}")
    tokenizer, _ = _load_tokenizer(arguments, stage)
    with staged(folder, size + BESIDE_WEIGHTS, new_manifest(arguments.training.seed)) as place:
        model = load_model(arguments, tokenizer, is_trainable=False, adapts=False)
        probes = find_probes(arguments, stage)
        words = write_adapter(arguments, source, place, folder.name, model, tokenizer, probes)
        write_card(place, folder.name, arguments, scores=False, serve=words)


def _stored_dtype(arguments: Arguments, config: PreTrainedConfig) -> torch.dtype:
    """As `modeling/dtypes.py` has it: GGUF files have none, and take that of the training."""
    training = arguments.training
    half = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
    if fetch_model(str(arguments.model.model_name_or_path)).gguf_file:
        return half or torch.float32
    return config.dtype or torch.float32


def _chosen_dtype(arguments: Arguments, stored: torch.dtype) -> torch.dtype:
    for asked in (arguments.exporting.export_dtype, arguments.model.infer_dtype):
        if asked != "auto":
            dtype: torch.dtype = getattr(torch, asked)
            return dtype
    return stored


def _show_sizes(
    arguments: Arguments,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    folder: Path,
    *,
    scores: bool,
) -> int:
    """Says what will be written and what is free, and gives the bytes that are needed."""
    with torch.device("meta"):
        twin = model_kind(config, scores=scores).from_config(
            copy.deepcopy(config), trust_remote_code=arguments.model.trust_remote_code
        )
    twin.tie_weights()
    numel: int = sum(each.numel() for each in twin.parameters())
    size = numel * dtype.itemsize
    most = arguments.exporting.export_size * 10**9
    files = -(-size // most)
    rows = [
        ("what", "dtype", "size"),
        (
            f"{numel:,} weights in {files} file{'s' if files > 1 else ''}",
            _name(dtype),
            console.gibibytes(size),
        ),
    ]
    kind = arguments.exporting.gguf
    if kind is not None:
        ends = {id(end.weight): end.weight.numel() for end in _ends(twin)}
        size_of_file = estimate_bytes(kind, numel, sum(ends.values()))
        size += size_of_file
        rows.append(("GGUF file", kind, console.gibibytes(size_of_file)))
    rows.append(("free disk", "", console.gibibytes(free_bytes(folder))))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for what, held, bytes_ in rows:
        console.info(f"  {what:<{widths[0]}}  {held:<{widths[1]}}  {bytes_:>{widths[2]}}")
    return size + BESIDE_WEIGHTS


def _ends(model: Any) -> Iterator[Any]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return (end for end in ends if end is not None)


def _load_tokenizer(arguments: Arguments, stage: Stage) -> tuple[PreTrainedTokenizerBase, Fitted]:
    """The tokenizer as it was trained: that of the last adapter's folder where it has one."""
    adapters = arguments.model.adapter_name_or_path
    folder = (
        Path(adapters[-1], arguments.model.adapter_folder or "").expanduser() if adapters else None
    )
    is_saved = folder is not None and (folder / "tokenizer_config.json").is_file()
    if is_saved:
        console.info(f"tokenizer: that of {folder}")
        tokenizer = _saved_tokenizer(str(folder), arguments)
    else:
        tokenizer = load_tokenizer(arguments.model)
    template, fitted = fit_template(arguments, tokenizer)
    for note in fitted.notes:
        console.info(note)
    stage.fit(tokenizer, template)
    trained = ((record_of(folder) if folder else None) or {}).get("arguments", {}).get("template")
    is_trained = is_saved and trained == arguments.data.template  # by a run that looked at its data
    if isinstance(template, Template) and not (is_trained and tokenizer.chat_template):
        if note := fit_chat_template(tokenizer, template):
            console.info(note)
    if not stage.scores:
        tokenizer.padding_side = "left"  # of prompts to answer
    return tokenizer, fitted


def _saved_tokenizer(folder: str, arguments: Arguments) -> PreTrainedTokenizerBase:
    options = hub_options(arguments.model) | {"revision": None}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as problem:
        raise ModelError(
            f"{folder}: the tokenizer cannot be read: {describe(problem)}. Delete its files there "
            "to take that of the base model."
        ) from problem
    return tokenizer


def _write_merged(
    arguments: Arguments,
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    fitted: Fitted,
    place: Path,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> Merged:
    """Merges, proves and writes; what is returned lets the model go."""
    stored, dtype = dtypes
    is_half = dtype in (torch.bfloat16, torch.float16)
    is_slow = is_half and is_emulated(dtype, arguments.training.use_cpu)
    loaded = dtype if stored == dtype and not is_slow else torch.float32
    arguments = arguments.changed(infer_dtype=_name(loaded))
    model = load_model(arguments, tokenizer, is_trainable=False, scores=stage.scores, adapts=False)
    apart = {name for name, each in model.named_parameters() if each.dtype != loaded}
    probes = find_probes(arguments, stage)
    readings: list[Reading] = []
    for adapter in arguments.model.adapter_name_or_path:
        adapted = load_adapter(model, adapter, arguments)
        probes = answer(adapted, probes)
        before = read(adapted, probes)
        with adapted.disable_adapter():
            plain = read(adapted, probes)
        model = _merge(adapted)
        _cast(model, loaded, apart)
        readings = read(model, probes)
        judge(f"adapter {adapter}: merged, apart", before, readings, loaded)
        judge_effect(plain, before, readings)
    if not readings:
        probes = answer(model, probes)
        readings = read(model, probes)
    if dtype != loaded:
        _cast(model, dtype, set())
        before, readings = readings, _read_fast(model, dtype, probes, is_slow=is_slow)
        judge(f"{_name(loaded)} -> {_name(dtype)}, apart", before, readings, dtype)
    _check_vocabulary(model, tokenizer)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        ids = list(fitted.stop_token_ids)
        generation.eos_token_id = ids[0] if len(ids) == 1 else ids
        generation.pad_token_id = tokenizer.pad_token_id
    PretrainedFiles().write(
        model, tokenizer, place, shard_size=f"{arguments.exporting.export_size}GB"
    )
    for file in place.glob(WEIGHTS[0]):  # which safetensors lets only its writer read
        file.chmod((place / "config.json").stat().st_mode)
    attention = model.config._attn_implementation
    return Merged(type(model), attention, model.device, is_slow, probes, readings)


def _read_fast(
    model: Any, dtype: torch.dtype, probes: Sequence[Probe], *, is_slow: bool
) -> list[Reading]:
    """What a model of this dtype says; computed in float32 where the CPU has no such products."""
    if is_slow:
        _cast(model, torch.float32, set())
    readings = read(model, probes)
    if is_slow:
        _cast(model, dtype, set())
    return readings


def _merge(adapted: PeftModel) -> Any:
    """The plain model; a matrix that embeddings and head share is parted, and shared again."""
    if not adapts_tied(adapted):
        return merge_adapter(adapted)
    base: Any = adapted.get_base_model()
    head, embeddings = (
        getattr(end, "base_layer", end)
        for end in (base.get_output_embeddings(), base.get_input_embeddings())
    )
    head.weight = nn.Parameter(embeddings.weight.detach().clone(), requires_grad=False)
    model: Any = merge_adapter(adapted)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    is_one = torch.allclose(head.weight, embeddings.weight, rtol=2**-6, atol=1e-6)
    if is_one:
        head.weight = embeddings.weight
    else:
        console.info("embeddings and head were one matrix, and learned apart: each has its own now")
    model.config.get_text_config().tie_word_embeddings = is_one
    model.config.tie_word_embeddings = is_one
    return model


def _cast(model: Any, dtype: torch.dtype, apart: set[str]) -> None:
    """Casts all weights but those that are kept apart; buffers stay as they are computed."""
    for name, each in model.named_parameters():
        if each.is_floating_point() and name not in apart:
            each.data = each.data.to(dtype)


def _check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a model whose parts do not agree how many tokens there are."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    head = model.get_output_embeddings()
    said = int(model.config.get_text_config().vocab_size)
    of_head = rows if head is None else int(head.weight.shape[0])
    if not (said == rows == of_head and rows >= len(tokenizer)):
        raise ModelError(
            f"the vocabulary does not fit: config.json says {said:,}, the embeddings have "
            f"{rows:,} rows, the head {of_head:,}, the tokenizer {len(tokenizer):,} tokens. "
            "Name the tokens that were added in training (add_tokens, add_special_tokens)."
        )
    tied = ", shared with the head" if is_tied(model) else ""
    console.info(f"vocabulary: {len(tokenizer):,} tokens in {rows:,} rows{tied}")


def _read_back(
    merged: Merged, place: Path, tokenizer: PreTrainedTokenizerBase, arguments: Arguments
) -> None:
    """Loads what was written, as others will; a ModelError if it is not what was in memory."""
    model, report = merged.kind.from_pretrained(
        place,
        dtype="auto",
        attn_implementation=merged.attention,
        output_loading_info=True,
        use_safetensors=True,
    )
    strange = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if strange:
        raise ModelError(
            f"what was written cannot be read back: {', '.join(strange[:3])} of its weights are "
            "missing or unexpected. Nothing was published; please report it."
        )
    if has_score(model):
        settle_score(model, tokenizer, is_new=False, seed=0)
    model.to(merged.device).eval()
    said = _read_fast(model, model.dtype, merged.probes, is_slow=merged.is_slow)
    found = compare(merged.readings, said)
    console.info(f"read back from the disk: {found.largest:.2g} apart at most; bound 0")
    if found.largest > (0 if merged.device.type == "cpu" else BOUNDS[model.dtype]):
        raise ModelError(
            f"what was written is not what was in memory: {found} apart. Nothing was published; "
            "look at the disk."
        )
    if _saved_tokenizer(str(place), arguments).get_vocab() != tokenizer.get_vocab():
        raise ModelError("the tokenizer that was written reads otherwise. Nothing was published.")


def _add_gguf(
    place: Path, name: str, kind: str, probes: Sequence[Probe], dtype: torch.dtype
) -> None:
    aside = place / "gguf"  # on its own: transformers would read what stands beside it
    aside.mkdir()
    file = write_gguf(place, aside / f"{name}-{kind}.gguf", kind)
    read_gguf_back(place, file, kind, probes, dtype)
    file.rename(place / file.name)
    aside.rmdir()


def _upload(arguments: Arguments, folder: Path) -> None:
    token = arguments.model.hf_hub_token
    api = HfApi(token=None if token is None else token.get_secret_value())
    name = str(arguments.exporting.export_hub_model_id)
    try:
        repository = api.create_repo(name, private=True, exist_ok=True).repo_id
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export")
    except (OSError, ValueError) as problem:
        raise ModelError(
            f"export_hub_model_id: {name} cannot be uploaded: {describe(problem)}. {folder} is "
            f"whole; `hf upload {name} {folder}` uploads it later."
        ) from problem
    console.info(f"uploaded: {repository}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
