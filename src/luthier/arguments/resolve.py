"""What follows from what, each with the line that says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from luthier.arguments.record import Arguments, facts
from luthier.arguments.training import TrainingArguments


@dataclass(frozen=True)
class Inferred:
    """A value that follows from others; `because` is the reason in a few words."""

    name: str
    value: Any
    because: str

    def line(self) -> str:
        """`name = value (why)`."""
        return f"{self.name} = {self.value} ({self.because})"


Inference: TypeAlias = Callable[[Arguments], Iterator[Inferred]]

LONGEST_TIMEOUT_S = 1800
"""The longest `ddp_timeout` that is taken as it is."""


def resolve(arguments: Arguments) -> Arguments:
    """The same arguments with everything filled in that can be known without a model or data."""
    for infer in INFERENCES:
        for found in infer(arguments):
            arguments = arguments.changed(**{found.name: found.value}).noted(found.line())
    return arguments.noted(*_idle(arguments))


def resolve_warmup_steps(training: TrainingArguments, max_steps: int) -> tuple[int, str]:
    """The steps of warm-up, once the number of all steps is known.

    `warmup_steps` above 0 wins over `warmup_ratio`; below 1 it is a share of all steps, and
    shares are rounded up.

    Returns:
        The steps, and the line that says where they are from, empty when nothing was inferred.
    """
    steps, ratio = training.warmup_steps, training.warmup_ratio
    if steps >= 1:
        return int(steps), ""
    name, share = ("warmup_steps", steps) if steps > 0 else ("warmup_ratio", ratio)
    if share == 0:
        return 0, ""
    count = math.ceil(max_steps * share)
    return count, f"warmup_steps = {count:,} ({name} {share:g} of {max_steps:,} steps)"


def _lora_alpha(arguments: Arguments) -> Iterator[Inferred]:
    finetuning = arguments.finetuning
    if finetuning.finetuning_type == "lora" and finetuning.lora_alpha is None:
        rank = finetuning.lora_rank
        yield Inferred("lora_alpha", 2 * rank, f"twice lora_rank {rank}")


def _gradient_checkpointing(arguments: Arguments) -> Iterator[Inferred]:
    if arguments.model.disable_gradient_checkpointing:
        yield Inferred("gradient_checkpointing", False, "disable_gradient_checkpointing")


def _layout(arguments: Arguments) -> Iterator[Inferred]:
    training = arguments.training
    if training.neftune_noise_alpha and training.layout == "auto":
        reason = "neftune_noise_alpha scales its noise by the length of a padded row"
        yield Inferred("layout", "padded", reason)


def _resize_vocab(arguments: Arguments) -> Iterator[Inferred]:
    model = arguments.model
    for name in ("new_special_tokens_config", "add_special_tokens", "add_tokens"):
        if getattr(model, name) and not model.resize_vocab:
            yield Inferred("resize_vocab", True, f"{name} adds to the vocabulary")
            return


def _init_special_tokens(arguments: Arguments) -> Iterator[Inferred]:
    model = arguments.model
    if model.init_special_tokens != "noise_init" and model.new_special_tokens_config is None:
        yield Inferred(
            "init_special_tokens", "noise_init", "no new_special_tokens_config describes the tokens"
        )


def _packing(arguments: Arguments) -> Iterator[Inferred]:
    data = arguments.data
    is_text = arguments.finetuning.stage == "pt"
    if data.neat_packing and not data.packing:
        yield Inferred("packing", True, "neat_packing")
    elif is_text and data.packing is None:
        yield Inferred("packing", True, "stage pt")
    if is_text and data.neat_packing is None and data.packing is not False:
        yield Inferred("neat_packing", True, "texts do not see each other; false joins them")


def _evaluation(arguments: Arguments) -> Iterator[Inferred]:
    training = arguments.training
    if training.eval_strategy == "no":
        return
    if not training.do_eval:
        yield Inferred("do_eval", True, f"eval_strategy {training.eval_strategy}")
    if training.eval_strategy == "steps" and training.eval_steps is None:
        yield Inferred("eval_steps", training.logging_steps, "as logging_steps")


def _best_model(arguments: Arguments) -> Iterator[Inferred]:
    training = arguments.training
    reasons = {
        "load_best_model_at_end": training.load_best_model_at_end,
        "early_stopping_steps": arguments.finetuning.early_stopping_steps is not None,
        "save_strategy best": training.save_strategy == "best",
        "lr_scheduler_type reduce_lr_on_plateau": (
            training.lr_scheduler_type == "reduce_lr_on_plateau"
        ),
    }
    reason = next((name for name, holds in reasons.items() if holds), None)
    metric = training.metric_for_best_model
    if metric is None and reason is not None:
        metric = "loss"
        yield Inferred("metric_for_best_model", metric, f"{reason} needs one")
    if metric is not None and training.greater_is_better is None:
        is_better = not metric.endswith("loss")
        yield Inferred("greater_is_better", is_better, f"metric_for_best_model {metric}")


def _ddp_timeout(arguments: Arguments) -> Iterator[Inferred]:
    training = arguments.training
    if training.ddp_timeout > LONGEST_TIMEOUT_S and not training.allow_long_timeout:
        yield Inferred(
            "ddp_timeout",
            LONGEST_TIMEOUT_S,
            f"{training.ddp_timeout} s would let a run hang whose process has died; no step takes "
            "as long, and data is prepared before processes wait. allow_long_timeout: true takes "
            "it as it is",
        )


INFERENCES: tuple[Inference, ...] = (
    _ddp_timeout,
    _lora_alpha,
    _gradient_checkpointing,
    _layout,
    _resize_vocab,
    _init_special_tokens,
    _packing,
    _evaluation,
    _best_model,
)


def _idle(arguments: Arguments) -> Iterator[str]:
    method = arguments.finetuning.finetuning_type
    data = arguments.data
    if data.packing and data.neat_packing is False and arguments.finetuning.stage != "pt":
        yield "neat_packing = false has no effect: packed conversations never see each other"
    others = {name for name, known in facts().items() if known.method not in ("", method)}
    names = [name for name in arguments.origins if name in others]
    if names:
        yield f"finetuning_type is {method}: {', '.join(names)} have no effect"
    if "buffer_size" in arguments.origins and not arguments.data.streaming:
        yield "buffer_size has no effect without streaming: all rows are shuffled"
