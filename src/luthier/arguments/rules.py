"""What must be there, and what cannot go together: small functions in two tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from luthier.arguments.choices import ADAPTERS, STAGES
from luthier.arguments.handed_on import find_misfits
from luthier.arguments.record import Arguments, facts

Purpose: TypeAlias = Literal["train", "chat", "data"]
"""What the arguments are for: a run needs more of them than a chat, or a look at the data."""

Check: TypeAlias = Callable[[Arguments], Iterator[str]]


@dataclass(frozen=True)
class Rule:
    """A check and the names it speaks of; it is not asked when one of them is already wrong."""

    names: frozenset[str]
    check: Check
    purposes: tuple[Purpose, ...]


TASKS = frozenset({"do_train", "do_eval", "do_predict", "predict_with_generate"})
"""What a run can be told to do."""

ONLY_WITH_THEIR_METHOD = [name for name, known in facts().items() if known.is_strict]

_NAME = re.compile(r"[a-z]\w+")

RULES: list[Rule] = []


def rule(
    *names: str, purposes: tuple[Purpose, ...] = ("train", "chat", "data")
) -> Callable[[Check], Check]:
    """A decorator that enters a check into the table."""

    def enter(check: Check) -> Check:
        RULES.append(Rule(frozenset(names), check, purposes))
        return check

    return enter


def broken_rules(arguments: Arguments, wrong: set[str], purpose: Purpose) -> list[str]:
    """Every sentence that the rules have to say; `wrong` holds names whose values do not count."""
    return [
        _with_origins(problem, arguments)
        for each in RULES
        if purpose in each.purposes and not each.names & wrong
        for problem in each.check(arguments)
    ]


def _with_origins(problem: str, arguments: Arguments) -> str:
    named = [name for name in _NAME.findall(problem) if name in arguments.origins]
    places = dict.fromkeys(arguments.origins[name] for name in named)
    return f"{', '.join(places)}: {problem}" if places else problem


def missing_names(arguments: Arguments, purpose: Purpose) -> list[str]:
    """Required names that nobody gave, in the order they should be listed."""
    training = arguments.training
    names = []
    if purpose == "data" and not (arguments.data.dataset or arguments.data.eval_dataset):
        names.append("dataset")
    if purpose != "data" and not arguments.model.model_name_or_path:
        names.append("model_name_or_path")
    if purpose == "train":
        if not training.output_dir:
            names.append("output_dir")
        if training.do_train and not (arguments.data.dataset or arguments.data.tokenized_path):
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


# What this version can do


@rule("stage", "finetuning_type")
def _what_is_named_is_here(arguments: Arguments) -> Iterator[str]:
    stage, method = arguments.finetuning.stage, arguments.finetuning.finetuning_type
    if stage == "ppo":
        yield "stage: ppo is not part of this program; use stage: sft, or trl for PPO."
    elif stage not in STAGES:
        yield f"stage: {stage} is not in this version yet; use stage: sft or pt."
    if method not in ADAPTERS:
        yield f"finetuning_type: {method} is not in this version yet; use finetuning_type: lora."


# Data


@rule(
    "eval_dataset",
    "val_size",
    "do_eval",
    "do_predict",
    "eval_strategy",
    "eval_on_start",
    purposes=("train",),
)
def _evaluation_has_rows(arguments: Arguments) -> Iterator[str]:
    training, data = arguments.training, arguments.data
    if data.eval_dataset or data.val_size > 0 or data.tokenized_path:
        return
    asked = [
        name
        for name, is_set in (
            ("do_eval", training.do_eval),
            ("do_predict", training.do_predict),
            ("predict_with_generate", training.predict_with_generate),
            (f"eval_strategy: {training.eval_strategy}", training.eval_strategy != "no"),
            ("eval_on_start", training.eval_on_start and training.do_train),
        )
        if is_set
    ]
    if asked:
        yield (
            f"{asked[0]} needs rows to evaluate. Name them by eval_dataset, or set val_size to "
            "keep a part of the training data."
        )


@rule("val_size", "dataset", "eval_dataset")
def _val_size_has_a_source(arguments: Arguments) -> Iterator[str]:
    data = arguments.data
    if data.val_size > 0 and data.eval_dataset:
        yield "val_size and eval_dataset both say what to evaluate on; keep one of them."
    elif data.val_size > 0 and not (data.dataset or data.tokenized_path):
        yield "val_size cuts rows from dataset, and no dataset is named; name it or leave val_size."


@rule("val_size")
def _val_size_is_share_or_count(arguments: Arguments) -> Iterator[str]:
    size = arguments.data.val_size
    if size >= 1 and size != int(size):
        yield f"val_size is {size}: expected a share below 1 or a whole number of rows."


@rule("cutoff_len")
def _examples_predict_something(arguments: Arguments) -> Iterator[str]:
    if arguments.data.cutoff_len == 1:
        yield "cutoff_len is 1: a single token is predicted from nothing; expected at least 2."


@rule("max_bad_rows")
def _bad_rows_are_share_or_count(arguments: Arguments) -> Iterator[str]:
    budget = arguments.data.max_bad_rows
    if budget >= 1 and budget != int(budget):
        yield f"max_bad_rows is {budget}: expected a share below 1 or a whole number of rows."


@rule("interleave_probs", "mix_strategy", "dataset", "eval_dataset")
def _shares_fit_the_mix(arguments: Arguments) -> Iterator[str]:
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


@rule("train_on_prompt", "mask_history")
def _prompt_and_history(arguments: Arguments) -> Iterator[str]:
    if arguments.data.train_on_prompt and arguments.data.mask_history:
        yield (
            "train_on_prompt learns all turns and mask_history only the last answer; keep one of "
            "them."
        )


@rule("on_overlong", "mask_history")
def _parts_and_history(arguments: Arguments) -> Iterator[str]:
    if arguments.data.on_overlong == "split" and arguments.data.mask_history:
        yield (
            "on_overlong: split learns from every part of a long row and mask_history only from "
            "its last answer; with mask_history, truncate keeps the last turns."
        )


@rule("stage", "predict_with_generate", "train_on_prompt", "mask_history")
def _texts_have_no_answers(arguments: Arguments) -> Iterator[str]:
    if arguments.finetuning.stage != "pt":
        return
    for name, is_set in (
        ("predict_with_generate", arguments.training.predict_with_generate),
        ("train_on_prompt", arguments.data.train_on_prompt),
        ("mask_history", arguments.data.mask_history),
    ):
        if is_set:
            yield (
                f"{name} is about questions and answers, and stage: pt learns whole texts; leave "
                "it out."
            )


@rule("stage", "on_overlong")
def _texts_are_never_cut_off(arguments: Arguments) -> Iterator[str]:
    asked = arguments.data.on_overlong
    is_other = arguments.given("on_overlong") and asked != "split"
    if arguments.finetuning.stage == "pt" and is_other:
        yield (
            f"on_overlong: {asked} is about rows that are an example each; stage: pt goes on with "
            "a long text in the next example and loses nothing. Leave on_overlong out."
        )


@rule("stage", "document_overlap", "cutoff_len")
def _overlap_fits(arguments: Arguments) -> Iterator[str]:
    overlap, room = arguments.data.document_overlap, arguments.data.cutoff_len
    if overlap and arguments.finetuning.stage != "pt":
        yield (
            "document_overlap is about texts (stage: pt); for long conversations there is "
            "on_overlong: split."
        )
    elif overlap > room // 2:
        yield (
            f"document_overlap {overlap:,} repeats more than half of each example of cutoff_len "
            f"{room:,}; expected at most {room // 2:,}."
        )


@rule("stage", "sample_by")
def _only_texts_are_sampled(arguments: Arguments) -> Iterator[str]:
    if arguments.data.sample_by != "line" and arguments.finetuning.stage != "pt":
        yield "sample_by says what a text is (stage: pt); conversations are rows. Leave it out."


@rule("disable_shuffling", "train_sampling_strategy")
def _one_order(arguments: Arguments) -> Iterator[str]:
    strategy = arguments.training.train_sampling_strategy
    if arguments.finetuning.disable_shuffling and strategy == "group_by_length":
        yield (
            "disable_shuffling keeps the order of the data and train_sampling_strategy: "
            "group_by_length changes it; keep one of them."
        )


@rule("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers")
def _workers_for_their_settings(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    if training.dataloader_num_workers:
        return
    for name, is_set in (
        ("dataloader_prefetch_factor", training.dataloader_prefetch_factor is not None),
        ("dataloader_persistent_workers", training.dataloader_persistent_workers),
    ):
        if is_set:
            yield f"{name} is about worker processes; set dataloader_num_workers above 0, too."


# Streaming


@rule("streaming", "max_steps", "do_train", purposes=("train",))
def _streams_have_a_length(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    if arguments.data.streaming and training.do_train and training.max_steps < 1:
        yield (
            "streaming reads rows as it goes and does not know how many there are: set max_steps, "
            "the number of updates (rows / (per_device_train_batch_size x "
            "gradient_accumulation_steps x processes) make one pass)."
        )


@rule("streaming", "eval_strategy", "save_strategy", "logging_strategy")
def _streams_have_no_epochs(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if arguments.data.streaming and getattr(training, name) == "epoch":
            yield f"{name}: epoch waits for an end that streaming does not know; set it to steps."


@rule("streaming", "train_sampling_strategy", "tokenized_path")
def _what_needs_all_rows(arguments: Arguments) -> Iterator[str]:
    if not arguments.data.streaming:
        return
    if arguments.training.train_sampling_strategy == "group_by_length":
        yield (
            "train_sampling_strategy: group_by_length sorts all rows by length and streaming knows "
            "only the next ones; leave it out (micro-batches are filled by tokens anyway)."
        )
    if arguments.data.tokenized_path:
        yield "tokenized_path keeps all rows encoded and streaming keeps none; take one of them."


# Method


@rule("finetuning_type", "adapter_name_or_path")
def _adapters_fit_the_method(arguments: Arguments) -> Iterator[str]:
    method = arguments.finetuning.finetuning_type
    if not arguments.model.adapter_name_or_path or method not in ADAPTERS:
        return
    if not ADAPTERS.get(method).keeps_apart:
        fitting = [name for name in ADAPTERS.names() if ADAPTERS.get(name).keeps_apart]
        yield (
            f"adapter_name_or_path goes with finetuning_type: {' or '.join(fitting)}, not "
            f"{method}. To go on from a merged model, merge the adapter first and name the merged "
            "model."
        )


@rule("finetuning_type", *ONLY_WITH_THEIR_METHOD)
def _switches_fit_the_method(arguments: Arguments) -> Iterator[str]:
    method, values = arguments.finetuning.finetuning_type, arguments.flat()
    for name in ONLY_WITH_THEIR_METHOD:
        wanted = facts()[name].method
        if values[name] and wanted != method:
            yield f"{name} goes with finetuning_type: {wanted}, not {method}; change one of them."


@rule("pissa_init", "pissa_convert")
def _conversion_of_pissa(arguments: Arguments) -> Iterator[str]:
    finetuning = arguments.finetuning
    if finetuning.pissa_convert and not finetuning.pissa_init:
        yield "pissa_convert copies what a PiSSA run has made; set pissa_init: true, too."


@rule("pissa_iter")
def _pissa_iterates(arguments: Arguments) -> Iterator[str]:
    if arguments.finetuning.pissa_iter == 0:
        yield "pissa_iter is 0; expected a number of iterations, or -1 for the exact decomposition."


@rule("freeze_trainable_layers", "finetuning_type")
def _freeze_trains_something(arguments: Arguments) -> Iterator[str]:
    finetuning = arguments.finetuning
    if (
        finetuning.finetuning_type == "freeze"
        and finetuning.freeze_trainable_layers == 0
        and not finetuning.freeze_extra_modules
    ):
        yield (
            "freeze_trainable_layers is 0, so nothing would learn; expected a number of layers "
            "(negative: the first ones), or freeze_extra_modules."
        )


@rule("train_from_scratch", "finetuning_type")
def _scratch_trains_all(arguments: Arguments) -> Iterator[str]:
    method = arguments.finetuning.finetuning_type
    is_partial = method in ADAPTERS and not ADAPTERS.get(method).trains_all
    if arguments.model.train_from_scratch and is_partial:
        yield (
            "train_from_scratch starts from random weights, which all have to learn; set "
            "finetuning_type: full."
        )


# Precision


@rule("bf16", "fp16", "pure_bf16")
def _one_precision(arguments: Arguments) -> Iterator[str]:
    asked = [
        name
        for name, is_set in (
            ("bf16", arguments.training.bf16),
            ("fp16", arguments.training.fp16),
            ("pure_bf16", arguments.finetuning.pure_bf16),
        )
        if is_set
    ]
    if "fp16" in asked and len(asked) > 1:
        yield f"{' and '.join(asked)} are different precisions; keep one of them."
    if arguments.training.bf16_full_eval and arguments.training.fp16_full_eval:
        yield "bf16_full_eval and fp16_full_eval are different precisions; keep one of them."


@rule("pure_bf16", "upcast_layernorm", purposes=("train",))
def _norms_beside_bfloat16(arguments: Arguments) -> Iterator[str]:
    if arguments.finetuning.pure_bf16 and arguments.model.upcast_layernorm:
        yield (
            "upcast_layernorm has norms give float32, which the bfloat16 layers of pure_bf16 do "
            "not take; set bf16: true in place of pure_bf16, or leave upcast_layernorm out."
        )


@rule("gradient_checkpointing", "disable_gradient_checkpointing")
def _one_word_on_checkpointing(arguments: Arguments) -> Iterator[str]:
    if (
        arguments.training.gradient_checkpointing is True
        and arguments.model.disable_gradient_checkpointing
    ):
        yield (
            "gradient_checkpointing and disable_gradient_checkpointing are both set; keep the one "
            "that you mean."
        )


# Layout


@rule("layout", "prefix_sharing")
def _only_trees_share(arguments: Arguments) -> Iterator[str]:
    if arguments.training.layout == "padded" and arguments.given("prefix_sharing"):
        yield (
            "prefix_sharing is about the tree, and layout: padded shares nothing; leave one of "
            "them out."
        )


@rule("layout", "neftune_noise_alpha")
def _noise_has_rows(arguments: Arguments) -> Iterator[str]:
    if arguments.training.layout == "tree" and arguments.training.neftune_noise_alpha:
        yield (
            "neftune_noise_alpha scales its noise by the length of a padded row, and layout: tree "
            "has none; leave layout out, which then pads."
        )


# Steps


@rule("load_best_model_at_end", "eval_strategy", "save_strategy", "eval_steps", "save_steps")
def _best_checkpoint_is_evaluated(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
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


@rule("eval_strategy", "save_strategy", "early_stopping_steps", "lr_scheduler_type", "do_train")
def _who_waits_for_evaluation(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    if training.eval_strategy != "no":
        return
    for name, is_set in (
        ("early_stopping_steps", arguments.finetuning.early_stopping_steps is not None),
        ("save_strategy: best", training.save_strategy == "best"),
        *(
            (f"lr_scheduler_type: {name}", training.lr_scheduler_type == name)
            for name in ("reduce_lr_on_plateau", "greedy")
        ),
    ):
        if is_set:
            yield f"{name} acts on evaluations; set eval_strategy to steps or epoch."


RULES.append(
    Rule(
        frozenset(
            {
                "lr_scheduler_type",
                "lr_scheduler_kwargs",
                "learning_rate",
                "optim",
                "optim_args",
                "gradient_checkpointing_kwargs",
                "use_reentrant_gc",
                "accelerator_config",
            }
        ),
        find_misfits,
        ("train",),
    )
)


@rule("max_steps")
def _steps_are_some(arguments: Arguments) -> Iterator[str]:
    if arguments.training.max_steps == 0:
        yield "max_steps is 0; expected a number of steps, or -1 to let num_train_epochs decide."


# Prediction


@rule("do_predict", "predict_with_generate")
def _prediction_generates(arguments: Arguments) -> Iterator[str]:
    training = arguments.training
    if training.do_predict and not training.predict_with_generate:
        yield (
            "do_predict writes generated answers; set predict_with_generate: true, too. For the "
            "loss alone, do_eval: true is enough."
        )


@rule("predict_with_generate", "compute_accuracy")
def _texts_or_accuracy(arguments: Arguments) -> Iterator[str]:
    if arguments.training.predict_with_generate and arguments.finetuning.compute_accuracy:
        yield (
            "predict_with_generate scores texts and compute_accuracy scores tokens; keep one of "
            "them."
        )
