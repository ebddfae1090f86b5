"""Embeddings that fit the tokenizer: they grow with it, and old rows keep their values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from luthier import console
from luthier.errors import ModelError
from luthier.modeling.heads import has_score
from luthier.modeling.sharded import full_shape, whole

MULTIPLE = 64
"""Rows are padded to a multiple of it, which matrix units like."""


def grow_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    new_tokens: Sequence[str] = (),
    init: str = "noise_init",
    descriptions: Mapping[str, str] | None = None,
) -> bool:
    """Makes room for every token and gives the new ones a start, in place.

    Grows only when the tokenizer is longer than the embeddings; the rows of `new_tokens` are set
    also where they fit into the padding that is there.

    Args:
        model: with its weights.
        tokenizer: after all tokens were added.
        new_tokens: those the model has never seen.
        init: `noise_init` is the mean of the old rows plus noise of deviation 1/sqrt(hidden size),
            `desc_init` the mean of the description's tokens, `desc_init_w_noise` that plus noise.
        descriptions: token -> text, for the two `desc_` ways.

    Returns:
        Whether any row is new.

    Raises:
        ModelError: if the model's head cannot be resized.
    """
    old_size = int(full_shape(model.get_input_embeddings().weight)[0])
    ids = {int(tokenizer.convert_tokens_to_ids(token)): token for token in new_tokens}
    if len(tokenizer) <= old_size and not ids:
        return False
    if len(tokenizer) > old_size:
        if not (has_score(model) or isinstance(model.get_output_embeddings(), nn.Linear)):
            raise ModelError(
                f"{type(model).__name__} has no plain output head, so its vocabulary of "
                f"{old_size:,} cannot grow to {len(tokenizer):,}. Leave the new tokens out."
            )
        model.resize_token_embeddings(
            len(tokenizer), pad_to_multiple_of=MULTIPLE, mean_resizing=False
        )
    new_size = int(full_shape(model.get_input_embeddings().weight)[0])
    told: dict[int, list[int]] = {}  # new row -> the rows of what describes it
    for number, token in ids.items() if init != "noise_init" else ():
        words = tokenizer((descriptions or {}).get(token, ""), add_special_tokens=False)
        told[number] = [word for word in words["input_ids"] if word not in ids]
        if not told[number]:
            console.warn(
                f"the new token {token} has no description that the tokenizer knows; it starts "
                "from the mean of all rows with noise"
            )
    new_rows = sorted({*ids, *range(old_size, new_size)})
    with whole(_matrices(model), changes=True) as matrices, torch.no_grad():
        for weight in matrices:
            old = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
            old[new_rows] = False
            before = weight.detach().clone()
            mean = before[old].float().mean(dim=0)
            deviation = 1 / math.sqrt(weight.shape[1])
            for row in new_rows:
                known = told.get(row)
                start = before[known].float().mean(dim=0) if known else mean
                if init != "desc_init" or not known:
                    start = start + torch.randn(weight.shape[1]).to(start) * deviation
                weight[row] = start.to(weight.dtype)
    num_new = max(len(ids), len(tokenizer) - old_size)
    new = f"{num_new} new token{'s' if num_new > 1 else ''}"
    if new_size == old_size:
        console.info(f"vocabulary: {new} in rows of the {old_size:,} that stood for none")
        return True
    padding = f", padded to a multiple of {MULTIPLE}" if new_size > len(tokenizer) else ""
    console.info(f"vocabulary: {old_size:,} -> {new_size:,} rows for {new}{padding}")
    return True


def fit_config(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes a configuration without weights fit the tokenizer, in place: its size, BOS, EOS, PAD.

    A vocabulary that is too small grows to the tokenizer's length; one that is larger stays, for
    tokens to come. PAD is left out where it is EOS: embeddings of PAD would never be learned.
    """
    text_config = config.get_text_config()
    told, length = text_config.vocab_size, len(tokenizer)
    needed = -(-length // MULTIPLE) * MULTIPLE
    if told < length:
        text_config.vocab_size = needed
        console.info(
            f"vocab_size = {needed:,} (the tokenizer has {length:,} tokens, config.json says "
            f"{told:,}; a multiple of {MULTIPLE})"
        )
    elif told > needed:
        console.warn(
            f"vocab_size {told:,} of config.json: the tokenizer has {length:,} tokens, so "
            f"{told - length:,} rows of the embeddings are never used. Write vocab_size {needed:,} "
            "there to save them."
        )
    pad = tokenizer.pad_token_id
    text_config.bos_token_id = tokenizer.bos_token_id
    text_config.eos_token_id = tokenizer.eos_token_id
    text_config.pad_token_id = None if pad == tokenizer.eos_token_id else pad


def embedding_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The last names of the input embeddings and, where it is a matrix of its own, the head."""
    modules = [model.get_input_embeddings()]
    head = model.get_output_embeddings()
    if head is not None and not is_tied(model):
        modules.append(head)
    return tuple(
        dict.fromkeys(
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if any(module is wanted for wanted in modules)
        )
    )


def check_rows_learn(model: Any) -> None:
    """Refuses a peft model that neither learns nor holds the rows of new tokens.

    They would be others at each load.
    """
    if not all(matrix.requires_grad for matrix in _matrices(model.get_base_model())):
        raise ModelError(
            "adapter_name_or_path: this adapter does not hold the embeddings, so the rows of new "
            "tokens would neither be learned nor saved with it. Set create_new_adapter: true, "
            "which merges it and trains another, or leave the new tokens out."
        )


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the head is the input embeddings' own matrix."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    head = model.get_output_embeddings()
    own_head = [] if head is None or is_tied(model) else [head.weight]
    return [model.get_input_embeddings().weight, *own_head]
