"""What must be there, and what cannot go together: a function for each subject."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from luthier.arguments.choices import ADAPTERS, OPTIMIZERS, PAIR_LOSSES, SCHEDULES, STAGES
from luthier.arguments.record import Arguments, facts
from luthier.arguments.training import ACCELERATOR, CHECKPOINTING
from luthier.arguments.wording import expectation, members
from luthier.errors import suggest

Purpose: TypeAlias = Literal["train", "chat", "data", "export", "eval"]
"""What the arguments are for: a run needs more of them than a chat, or a look at the data."""

TASKS = frozenset({"do_train", "do_eval", "do_predict", "predict_with_generate"})
"""What a run can be told to do."""

TOKEN_LOSSES = ("use_dft_loss", "use_asft_loss", "use_eaft_loss")
"""Each asks for a row of `losses/tokens.py`."""

CHOICE_OF = {"lr_scheduler_kwargs": "lr_scheduler_type", "optim_args": "optim"}
"""Settings of what another knob chooses."""

_NAME = re.compile(r"[a-z]\w+")


def broken_rules(arguments: Arguments, wrong: Collection[str], purpose: Purpose) -> list[str]:
    """Every sentence that the rules have to say, behind the places of the names in it.

    Args:
        arguments: with their defaults where values are wrong.
        wrong: the names of those; a sentence that speaks of one says nothing true.
        purpose: what will be done with the arguments.
    """
    said = []
    for check in (*RULES, *(RULES_OF_RUNS if purpose == "train" else ())):
        for problem in check(arguments):
            names = _NAME.findall(problem)
            subjects = {*names, *(CHOICE_OF[name] for name in names if name in CHOICE_OF)}
            if not subjects & set(wrong):
                places = dict.fromkeys(
                    arguments.origins[name] for name in names if name in arguments.origins
                )
                said.append(f"{', '.join(places)}: {problem}" if places else problem)
    return said


def missing_names(arguments: Arguments, purpose: Purpose) -> list[str]:
    """Required names that nobody gave, in the order they should be listed."""
    training, data = arguments.training, arguments.data
    names = []
    if purpose == "data" and not (data.dataset or data.eval_dataset):
        names.append("dataset")
    if purpose != "data" and not arguments.model.model_name_or_path:
        names.append("model_name_or_path")
    if purpose == "export" and not arguments.exporting.export_dir:
        names.append("export_dir")
    if purpose == "eval" and not arguments.evaluating.task:
        names.append("task")
    if purpose == "train":
        if not training.output_dir:
            names.append("output_dir")
        if training.do_train and not (data.dataset or data.tokenized_path):
            names.append("dataset")
    return names


def nothing_to_do(arguments: Arguments) -> list[str]:
    """The sentence for a run that was told neither to train nor to evaluate nor to predict."""
    if any(getattr(arguments.training, name) for name in TASKS):
        return []
    return [
        "there is nothing to do. Set do_train: true to train, do_eval: true to evaluate, or "
        "do_predict: true with predict_with_generate: true to write predictions."
    ]


def _what_is_here(arguments: Arguments) -> Iterator[str]:
    stage = arguments.finetuning.stage
    if stage not in STAGES:
        yield f"stage: {stage} is not part of this program; use stage: dpo, or trl for PPO."


def _evaluation_has_rows(arguments: Arguments) -> Iterator[str]:
    training, data = arguments.training, arguments.data
    if data.eval_dataset or data.val_size > 0 or data.tokenized_path:
        return
    asked = {
        "do_eval": training.do_eval,
        "do_predict": training.do_predict,
        "predict_with_generate": training.predict_with_generate,
        f"eval_strategy: {training.eval_strategy}": training.eval_strategy != "no",
        "eval_on_start": training.eval_on_start and training.do_train,
    }
    first = next((name for name, is_set in asked.items() if is_set), None)
    if first is not None:
        yield (
            f"{first} needs rows to evaluate. Name them by eval_dataset, or set val_size to keep a "
            "part of the training data."
        )


def _data(arguments: Arguments) -> Iterator[str]:
    data, training = arguments.data, arguments.training
    if data.val_size > 0 and data.eval_dataset:
        yield "val_size and eval_dataset both say what to evaluate on; keep one of them."
    elif data.val_size > 0 and not (data.dataset or data.tokenized_path):
        yield "val_size cuts rows from dataset, and no dataset is named; name it or leave val_size."
    for name, size in (("val_size", data.val_size), ("max_bad_rows", data.max_bad_rows)):
        if size >= 1 and size != int(size):
            yield f"{name} is {size}: expected a share below 1 or a whole number of rows."
    if data.cutoff_len == 1:
        yield "cutoff_len is 1: a single token is predicted from nothing; expected at least 2."
    if data.train_on_prompt and data.mask_history:
        yield (
            "train_on_prompt learns all turns and mask_history only the last answer; keep one of "
            "them."
        )
    if data.on_overlong == "split" and data.mask_history:
        yield (
            "on_overlong: split learns from every part of a long row and mask_history only from "
            "its last answer; with mask_history, truncate keeps the last turns."
        )
    is_sorted = training.train_sampling_strategy == "group_by_length"
    if arguments.finetuning.disable_shuffling and is_sorted:
        yield (
            "disable_shuffling keeps the order of the data and train_sampling_strategy: "
            "group_by_length changes it; keep one of them."
        )
    for name, is_set in (
        ("dataloader_prefetch_factor", training.dataloader_prefetch_factor is not None),
        ("dataloader_persistent_workers", training.dataloader_persistent_workers),
    ):
        if is_set and not training.dataloader_num_workers:
            yield f"{name} is about worker processes; set dataloader_num_workers above 0, too."


def _mix(arguments: Arguments) -> Iterator[str]:
    data = arguments.data
    shares = data.interleave_probs
    if not shares:
        return
    if data.mix_strategy == "concat":
        yield (
            "interleave_probs needs a mix that draws from the data sets: set mix_strategy: "
            "interleave_under (or over, or once), or leave interleave_probs."
        )
    if any(share < 0 for share in shares):
        yield f"interleave_probs holds a negative share: {', '.join(map(str, shares))}."
    elif abs(sum(shares) - 1) > 1e-6:
        yield (
            f"interleave_probs makes {sum(shares):g} together ({', '.join(map(str, shares))}); "
            "expected 1."
        )
    for name, sets in (("dataset", data.dataset), ("eval_dataset", data.eval_dataset)):
        if sets and len(sets) != len(shares):
            yield (
                f"interleave_probs has {len(shares)} shares and {name} has {len(sets)} data sets; "
                "give one share to each."
            )


def _texts(arguments: Arguments) -> Iterator[str]:
    data = arguments.data
    overlap, room = data.document_overlap, data.cutoff_len
    if arguments.finetuning.stage != "pt":
        if overlap:
            yield (
                "document_overlap is about texts (stage: pt); for long conversations there is "
                "on_overlong: split."
            )
        if data.sample_by != "line":
            yield (
                "sample_by says what a text is (stage: pt); conversations are rows. Leave it out."
            )
        return
    for name, is_set in (
        ("predict_with_generate", arguments.training.predict_with_generate),
        ("eval_generate_samples", arguments.training.eval_generate_samples),
        ("train_on_prompt", data.train_on_prompt),
        ("mask_history", data.mask_history),
    ):
        if is_set:
            yield (
                f"{name} is about questions and answers, and stage: pt learns whole texts; leave "
                "it out."
            )
    if arguments.given("on_overlong") and data.on_overlong != "split":
        yield (
            f"on_overlong: {data.on_overlong} is about rows that are an example each; stage: pt "
            "goes on with a long text in the next example and loses nothing. Leave on_overlong out."
        )
    if overlap > room // 2:
        yield (
            f"document_overlap {overlap:,} repeats more than half of each example of cutoff_len "
            f"{room:,}; expected at most {room // 2:,}."
        )


def _streams_have_a_length(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    if arguments.data.streaming and training.do_train and training.max_steps < 1:
        yield (
            "streaming reads rows as it goes and does not know how many there are: set max_steps, "
            "the number of updates (rows / (per_device_train_batch_size x "
            "gradient_accumulation_steps x processes) make one pass)."
        )


def _reference(arguments: Arguments) -> Iterator[str]:
    finetuning = arguments.finetuning
    stage, losses = finetuning.stage, ", ".join(finetuning.pref_loss)
    asked = {
        "ref_model": finetuning.ref_model,
        "ref_model_adapters": finetuning.ref_model_adapters,
        "precompute_ref": finetuning.precompute_ref is True,
    }
    asked = {name: value for name, value in asked.items() if value}
    if not asked or not _goes_with(stage, "ref_model"):
        return
    if not STAGES.get(stage).reads_reference(finetuning):
        for name in asked if _goes_with(stage, "pref_loss") else ():  # of others a note tells
            yield f"{name}: pref_loss: {losses} takes no reference; leave {name} out."
        return
    if "ref_model_adapters" in asked and "ref_model" not in asked:
        yield "ref_model_adapters are merged into ref_model, which is unset; name it, too."
    if "precompute_ref" in asked and arguments.data.streaming:
        yield (
            "precompute_ref reads all rows before training, and streaming reads them as it goes; "
            "leave precompute_ref out, which then reads the reference with every step."
        )


def _goes_with(stage: str, name: str) -> bool:
    stages = facts()[name].stages
    return stage in stages or not stages


def _streaming(arguments: Arguments) -> Iterator[str]:
    if not arguments.data.streaming:
        return
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if getattr(arguments.training, name) == "epoch":
            yield f"{name}: epoch waits for an end that streaming does not know; set it to steps."
    if arguments.training.train_sampling_strategy == "group_by_length":
        yield (
            "train_sampling_strategy: group_by_length sorts all rows by length and streaming knows "
            "only the next ones; leave it out (micro-batches are filled by tokens anyway)."
        )
    if arguments.data.tokenized_path:
        yield "tokenized_path keeps all rows encoded and streaming keeps none; take one of them."


def _method(arguments: Arguments) -> Iterator[str]:
    finetuning, values = arguments.finetuning, arguments.flat()
    method = finetuning.finetuning_type
    if method in ADAPTERS:
        entry = ADAPTERS.get(method)
        if arguments.model.adapter_name_or_path and not entry.keeps_apart:
            fitting = [name for name in ADAPTERS.names() if ADAPTERS.get(name).keeps_apart]
            yield (
                f"adapter_name_or_path goes with finetuning_type: {' or '.join(fitting)}, not "
                f"{method}. To go on from a merged model, merge the adapter first and name the "
                "merged model."
            )
        if arguments.model.train_from_scratch and not entry.trains_all:
            yield (
                "train_from_scratch starts from random weights, which all have to learn; set "
                "finetuning_type: full."
            )
    for name, known in facts().items():
        if known.is_strict and method not in known.methods and values[name]:
            yield (
                f"{name} goes with finetuning_type: {' or '.join(known.methods)}, not {method}; "
                "change one of them."
            )
    if finetuning.pissa_convert and not finetuning.pissa_init:
        yield "pissa_convert copies what a PiSSA run has made; set pissa_init: true, too."
    if finetuning.pissa_iter == 0:
        yield "pissa_iter is 0; expected a number of iterations, or -1 for the exact decomposition."
    if method == "oft" and not (finetuning.oft_rank or finetuning.oft_block_size):
        yield "oft_rank and oft_block_size are both 0; set one of them."
    has_both = finetuning.oft_rank and finetuning.oft_block_size
    if method == "oft" and has_both and arguments.given("oft_block_size"):
        yield (
            "oft_rank and oft_block_size say the same in two ways; set one of them (the other 0)."
        )
    if finetuning.use_llama_pro and finetuning.freeze_trainable_layers < 1:
        yield (
            f"freeze_trainable_layers is {finetuning.freeze_trainable_layers}; with use_llama_pro "
            "it is the number of layers that were added."
        )
    trains_no_layer = finetuning.freeze_trainable_layers == 0
    if method == "freeze" and trains_no_layer and not finetuning.freeze_extra_modules:
        yield (
            "freeze_trainable_layers is 0, so nothing would learn; expected a number of layers "
            "(negative: the first ones), or freeze_extra_modules."
        )


def _tokens(arguments: Arguments) -> Iterator[str]:
    finetuning = arguments.finetuning
    asked = [name for name in TOKEN_LOSSES if getattr(finetuning, name)]
    if len(asked) > 1:
        yield f"{' and '.join(asked)} are different losses; keep one of them."
    for name in asked:
        if finetuning.stage != "sft":
            yield f"{name} goes with stage: sft, not {finetuning.stage}; leave it out."
        if arguments.training.label_smoothing_factor:
            yield f"{name} has no label_smoothing_factor; leave one of them out."


def _pairs(arguments: Arguments) -> Iterator[str]:
    finetuning = arguments.finetuning
    if not _goes_with(finetuning.stage, "pref_loss"):
        return
    names, weights = finetuning.pref_loss, finetuning.pref_loss_weights
    unknown = [name for name in names if name not in PAIR_LOSSES]
    for name in unknown:
        yield f"pref_loss: {name!r} is unknown.{suggest(name, PAIR_LOSSES.names())}"
    if not names:
        yield "pref_loss names no loss; leave it out for sigmoid, that of the DPO paper."
    if weights and len(weights) != len(names):
        yield (
            f"pref_loss_weights has {len(weights)} numbers and pref_loss {len(names)} names; give "
            "each loss its weight."
        )
    if unknown or not names:
        return
    losses, said = [PAIR_LOSSES.get(name) for name in names], ", ".join(names)

    def those_with(fact: str) -> str:
        return ", ".join(n for n in PAIR_LOSSES.names() if getattr(PAIR_LOSSES.get(n), fact))

    smoothing = finetuning.dpo_label_smoothing
    if smoothing and not any(each.smooths for each in losses):
        yield (
            f"dpo_label_smoothing: pref_loss: {said} has none; leave it out, or choose one of "
            f"{those_with('smooths')}."
        )
    for name, loss in zip(names, losses, strict=True):
        if loss.needs_smoothing and not smoothing:
            yield f"pref_loss: {name} needs dpo_label_smoothing above 0, such as 0.001."
    if finetuning.f_divergence_type != "reverse_kl" and not any(each.diverges for each in losses):
        yield (
            f"f_divergence_type: pref_loss: {said} has reverse_kl alone; leave it out, or choose "
            f"one of {those_with('diverges')}."
        )


def _precision(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    pure = arguments.finetuning.pure_bf16
    halves = {"bf16": training.bf16, "fp16": training.fp16, "pure_bf16": pure}
    asked = [name for name, is_set in halves.items() if is_set]
    if training.fp16 and len(asked) > 1:
        yield f"{' and '.join(asked)} are different precisions; keep one of them."
    if training.bf16_full_eval and training.fp16_full_eval:
        yield "bf16_full_eval and fp16_full_eval are different precisions; keep one of them."
    if training.gradient_checkpointing is True and arguments.model.disable_gradient_checkpointing:
        yield (
            "gradient_checkpointing and disable_gradient_checkpointing are both set; keep the one "
            "that you mean."
        )


def _norms_beside_bfloat16(arguments: Arguments) -> Iterator[str]:
    if arguments.finetuning.pure_bf16 and arguments.model.upcast_layernorm:
        yield (
            "upcast_layernorm has norms give float32, which the bfloat16 layers of pure_bf16 do "
            "not take; set bf16: true in place of pure_bf16, or leave upcast_layernorm out."
        )


def _layout(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    if training.layout == "padded" and arguments.given("prefix_sharing"):
        yield (
            "prefix_sharing is about the tree, and layout: padded shares nothing; leave one of "
            "them out."
        )
    if training.layout == "tree" and training.neftune_noise_alpha:
        yield (
            "neftune_noise_alpha scales its noise by the length of a padded row, and layout: tree "
            "has none; leave layout out, which then pads."
        )


def _steps(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    if training.max_steps == 0:
        yield "max_steps is 0; expected a number of steps, or -1 to let num_train_epochs decide."
    schedule = training.lr_scheduler_type
    waiting = {
        "early_stopping_steps": arguments.finetuning.early_stopping_steps is not None,
        "save_strategy: best": training.save_strategy == "best",
        f"lr_scheduler_type: {schedule}": SCHEDULES[schedule].acts_on_evaluations,
    }
    for name, is_set in waiting.items():
        if is_set and training.eval_strategy == "no":
            yield f"{name} acts on evaluations; set eval_strategy to steps or epoch."
    if not training.load_best_model_at_end or training.save_strategy == "best":
        return
    if training.eval_strategy != training.save_strategy:
        yield (
            "load_best_model_at_end compares evaluated checkpoints: eval_strategy is "
            f"{training.eval_strategy} and save_strategy is {training.save_strategy}; set both to "
            "steps or both to epoch."
        )
    elif training.eval_strategy == "steps":
        eval_steps = training.eval_steps or training.logging_steps
        times = training.save_steps / eval_steps
        if abs(times - round(times)) > 1e-9 or round(times) < 1:
            yield (
                f"load_best_model_at_end needs an evaluation at every save: save_steps is "
                f"{training.save_steps:g} and eval_steps {eval_steps:g}; make save_steps a "
                "multiple of eval_steps."
            )


def _prediction(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    if arguments.finetuning.stage == "rm":
        if training.predict_with_generate:
            yield (
                "predict_with_generate writes answers, and stage: rm scores those that are there. "
                "Leave it out; do_predict: true is enough."
            )
        return
    if training.eval_generate_samples and training.eval_strategy == "no":
        yield (
            "eval_generate_samples answers rows at every evaluation, and eval_strategy is no; set "
            "eval_strategy: steps or epoch."
        )
    if training.do_predict and not training.predict_with_generate:
        yield (
            "do_predict writes generated answers; set predict_with_generate: true, too. For the "
            "loss alone, do_eval: true is enough."
        )
    for name in ("metric", "limit"):
        if getattr(training, name) is not None and not training.predict_with_generate:
            yield f"{name} is about generated answers; set predict_with_generate: true, too."
    generating = arguments.generating
    if generating.num_return_sequences > 1 and not generating.do_sample:
        yield (
            f"num_return_sequences: with do_sample: false all {generating.num_return_sequences} "
            "answers to a prompt are the same one. Set do_sample: true, or leave it out."
        )
    beams = arguments.data.eval_num_beams or generating.num_beams
    if generating.num_return_sequences > 1 and beams > 1:
        yield (
            f"num_return_sequences: a search with {beams} beams gives one answer. Set num_beams "
            "to 1, or leave num_return_sequences out."
        )


def _settings_of_libraries(arguments: Arguments) -> Iterator[str]:
    """Names that nobody takes, values of none, in the settings that are handed on as they are."""
    training = arguments.training
    schedule, given = training.lr_scheduler_type, training.lr_scheduler_kwargs or {}
    taken = SCHEDULES[schedule].settings
    yield from _misfits("lr_scheduler_kwargs", schedule, taken, given)
    ends = [name for name in ("min_lr", "min_lr_rate") if given.get(name) is not None]
    if "min_lr_rate" in taken and len(ends) != 1:
        found = "has both" if ends else "has neither"
        yield (
            f"lr_scheduler_type: {schedule} needs one of min_lr and min_lr_rate in "
            f"lr_scheduler_kwargs, and {found}. Write lr_scheduler_kwargs: {{min_lr_rate: 0.1}}, a "
            "share of learning_rate, or min_lr, the least rate itself."
        )
    end = given.get("lr_end", 1e-7)
    if schedule == "polynomial" and isinstance(end, float) and end >= training.learning_rate:
        yield (
            f"lr_scheduler_type: polynomial falls to lr_end, {end:g}; expected less than "
            f"learning_rate, {training.learning_rate:g}. Say it in lr_scheduler_kwargs."
        )
    pairs = [part.partition("=") for part in (training.optim_args or "").split(",") if part.strip()]
    if any(not equals or "=" in value for _, equals, value in pairs):
        yield f"optim_args: expected name=value,name=value; found {training.optim_args!r}."
    else:
        given = {name.strip(): value.strip() for name, _, value in pairs}
        taken = OPTIMIZERS.get(training.optim).settings
        yield from _misfits("optim_args", training.optim, taken, given)
    given, name = training.gradient_checkpointing_kwargs or {}, "gradient_checkpointing_kwargs"
    yield from _misfits(name, "gradient checkpointing", CHECKPOINTING, given)
    if given.get("debug") and given.get("use_reentrant", arguments.model.use_reentrant_gc):
        yield f"{name}: debug needs use_reentrant: false beside it."
    given = training.accelerator_config or {}
    yield from _misfits("accelerator_config", "accelerate", ACCELERATOR, given)


def _misfits(
    argument: str, taker: str, taken: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterator[str]:
    for name, value in given.items():
        if name not in taken:
            hint = suggest(name, taken) if taken else " It takes none; leave it out."
            yield f"{argument}: {taker} takes no {name!r}.{hint}"
            continue
        try:
            is_number = isinstance(value, bool) and bool not in members(taken[name])
            TypeAdapter(taken[name]).validate_python("a switch" if is_number else value)
        except ValidationError:
            expected = expectation(FieldInfo.from_annotation(taken[name]))
            yield f"{argument}: {name} is {value!r}; expected {expected}."


def _export(arguments: Arguments) -> Iterator[str]:
    exporting = arguments.exporting
    if exporting.adapter and (exporting.gguf or exporting.ollama):
        yield (
            "adapter exports no weights of the model, and gguf and ollama are made of them; export "
            "twice, into two folders."
        )
    if exporting.adapter and exporting.export_dtype != "auto":
        yield "export_dtype: adapter is written as it was trained; leave export_dtype out."


Check: TypeAlias = Callable[[Arguments], Iterator[str]]

RULES: tuple[Check, ...] = (
    _what_is_here,
    _data,
    _mix,
    _texts,
    _streaming,
    _reference,
    _method,
    _tokens,
    _pairs,
    _precision,
    _layout,
    _steps,
    _prediction,
    _export,
)

RULES_OF_RUNS: tuple[Check, ...] = (
    _evaluation_has_rows,
    _streams_have_a_length,
    _norms_beside_bfloat16,
    _settings_of_libraries,
)
"""Asked for `luthier train` alone."""
