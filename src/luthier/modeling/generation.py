"""How a model is told to answer: settings, stop tokens, room left, and the state it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from luthier.modeling.dtypes import autocasting

if TYPE_CHECKING:
    from luthier.arguments.generating import GeneratingArguments


def generation_config(
    generating: GeneratingArguments,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    *,
    num_beams: int | None = None,
    use_cache: bool = True,
) -> GenerationConfig:
    """The generating arguments as transformers takes them, all but the length.

    Every value is stated, because `generate` fills what is left open from the model's own
    `generation_config.json`.

    Args:
        generating: what the user asked for.
        tokenizer: fitted to the template; gives the padding token.
        stop_token_ids: tokens that end an answer; the tokenizer's EOS when empty.
        num_beams: wins over `generating.num_beams` (`eval_num_beams`).
        use_cache: whether keys and values of earlier tokens are kept (`use_kv_cache`).
    """
    beams = generating.num_beams if num_beams is None else num_beams
    sampling = generating.do_sample
    return GenerationConfig(
        do_sample=sampling,
        temperature=generating.temperature if sampling else 1.0,
        top_p=generating.top_p if sampling else 1.0,
        top_k=max(generating.top_k, 0) if sampling else 50,
        num_beams=beams,
        length_penalty=generating.length_penalty if beams > 1 else 1.0,
        early_stopping=False,
        repetition_penalty=generating.repetition_penalty,
        eos_token_id=list(stop_token_ids) or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=use_cache,
    )


def new_token_limit(generating: GeneratingArguments, prompt_length: int, model: Any) -> int:
    """How many tokens an answer to one prompt may have; none when the prompt leaves no room.

    `max_new_tokens` when it is above zero, else what `max_length` leaves; in both cases not more
    than what the model's positions leave.
    """
    wanted = generating.max_new_tokens
    if wanted <= 0:
        wanted = generating.max_length - prompt_length
    context = context_length(model)
    return max(wanted if context is None else min(wanted, context - prompt_length), 0)


def context_length(model: Any) -> int | None:
    """How many positions a model knows; None for those without a bound."""
    known: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return known


@contextmanager
def answering(model: Any) -> Iterator[None]:
    """Turns dropout and gradient checkpointing off inside, and each module back afterwards.

    A model that was trained in mixed precision computes in it.

    Layers recompute activations only while they are in training mode, so `eval` is enough to let
    them keep keys and values.
    """
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with autocasting(model):
            yield
    finally:
        for module in in_training:
            module.training = True
