"""What follows from what, each with the line that says so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from luthier.arguments.record import Arguments, facts
from luthier.arguments.training import TrainingArguments

LONGEST_TIMEOUT_S = 1800
"""The longest `ddp_timeout` that is taken as it is."""


def resolve(arguments: Arguments) -> Arguments:
    """The same arguments with everything filled in that can be known without a model or data."""
    resolved = arguments

    def infer(name: str, value: Any, because: str) -> None:
        nonlocal resolved
        line = f"{name} = {value} ({because})"
        resolved = resolved.changed(**{name: value}).noted(line)

    model, data, finetuning = arguments.model, arguments.data, arguments.finetuning
    training, is_text = arguments.training, arguments.finetuning.stage == "pt"
    if training.ddp_timeout > LONGEST_TIMEOUT_S and not training.allow_long_timeout:
        infer(
            "ddp_timeout",
            LONGEST_TIMEOUT_S,
            f"{training.ddp_timeout} s would let a run hang whose process has died; no step takes "
            "as long, and data is prepared before processes wait. allow_long_timeout: true takes "
            "it as it is",
        )
    if finetuning.finetuning_type == "lora" and finetuning.lora_alpha is None:
        infer("lora_alpha", 2 * finetuning.lora_rank, f"twice lora_rank {finetuning.lora_rank}")
    if finetuning.oft_rank and not arguments.given("oft_block_size"):
        infer("oft_block_size", 0, f"oft_rank {finetuning.oft_rank} says it")
    if model.disable_gradient_checkpointing:
        infer("gradient_checkpointing", False, "disable_gradient_checkpointing")
    if training.neftune_noise_alpha and training.layout == "auto":
        reason = "neftune_noise_alpha scales its noise by the length of a padded row"
        infer("layout", "padded", reason)
    if not model.resize_vocab:
        for name in ("new_special_tokens_config", "add_special_tokens", "add_tokens"):
            if getattr(model, name):
                infer("resize_vocab", True, f"{name} adds to the vocabulary")
                break
    if model.init_special_tokens != "noise_init" and model.new_special_tokens_config is None:
        reason = "no new_special_tokens_config describes the tokens"
        infer("init_special_tokens", "noise_init", reason)
    if data.neat_packing and not data.packing:
        infer("packing", True, "neat_packing")
    elif is_text and data.packing is None:
        infer("packing", True, "stage pt")
    if is_text and data.neat_packing is None and data.packing is not False:
        infer("neat_packing", True, "texts do not see each other; false joins them")
    if training.eval_strategy != "no":
        if not training.do_eval:
            infer("do_eval", True, f"eval_strategy {training.eval_strategy}")
        if training.eval_strategy == "steps" and training.eval_steps is None:
            infer("eval_steps", training.logging_steps, "as logging_steps")
    metric = training.metric_for_best_model
    if metric is None:
        waiting = {
            "load_best_model_at_end": training.load_best_model_at_end,
            "early_stopping_steps": finetuning.early_stopping_steps is not None,
            "save_strategy best": training.save_strategy == "best",
            "lr_scheduler_type reduce_lr_on_plateau": (
                training.lr_scheduler_type == "reduce_lr_on_plateau"
            ),
        }
        reason = next((name for name, holds in waiting.items() if holds), "")
        if reason:
            metric = "loss"
            infer("metric_for_best_model", metric, f"{reason} needs one")
    if metric is not None and training.greater_is_better is None:
        is_better = not metric.endswith("loss")
        infer("greater_is_better", is_better, f"metric_for_best_model {metric}")
    return resolved.noted(*_idle(resolved))


def _idle(arguments: Arguments) -> Iterator[str]:
    method, data = arguments.finetuning.finetuning_type, arguments.data
    if data.packing and data.neat_packing is False and arguments.finetuning.stage != "pt":
        yield "neat_packing = false has no effect: packed conversations never see each other"
    stage = arguments.finetuning.stage
    known = {name: each for name, each in facts().items() if name in arguments.origins}
    of_others = {
        f"finetuning_type is {method}": [
            n for n, k in known.items() if k.methods and method not in k.methods
        ],
        f"stage is {stage}": [n for n, k in known.items() if k.stages and stage not in k.stages],
    }
    if stage == "sft" and not arguments.finetuning.use_asft_loss:
        of_others["stage is sft without use_asft_loss"] = [
            name for name in ("ref_model", "ref_model_adapters") if name in arguments.origins
        ]
    for reason, names in of_others.items():
        if names:
            yield f"{reason}: {', '.join(names)} have no effect"
    if "buffer_size" in arguments.origins and not data.streaming:
        yield "buffer_size has no effect without streaming: all rows are shuffled"


def resolve_warmup_steps(training: TrainingArguments, max_steps: int) -> tuple[int, str]:
    """The steps of warm-up, and the line that says where they are from, empty if they were given.

    `warmup_steps` above 0 wins over `warmup_ratio`; below 1 it is a share of all steps, and
    shares are rounded up.
    """
    steps, ratio = training.warmup_steps, training.warmup_ratio
    if steps >= 1:
        return int(steps), ""
    name, share = ("warmup_steps", steps) if steps > 0 else ("warmup_ratio", ratio)
    if share == 0:
        return 0, ""
    count = math.ceil(max_steps * share)
    return count, f"warmup_steps = {count:,} ({name} {share:g} of {max_steps:,} steps)"
