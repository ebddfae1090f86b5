"""The head of a reward model: one number for a sequence, read at its last token."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, TaskType
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from luthier import console
from luthier.arguments.model import ModelArguments
from luthier.errors import ModelError
from luthier.modeling.sharded import whole

SCORE = "score"
"""What transformers calls it in every decoder that classifies sequences."""

KIND = "ForSequenceClassification"
"""The end of the names of such classes."""

VALUE_HEAD = "value_head.safetensors"
"""The file in which LLaMA-Factory looks for it, beside a causal model's."""


class Score(nn.Linear):
    """(..., H) -> (..., 1) float32, whatever the model computes in; without bias.

    A bias cancels where scores are compared.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """The scores; transformers' own head gives them in the dtype of its weight."""
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())


def has_score(model: Any) -> bool:
    """Whether a bare model says a score of sequences, and no tokens."""
    return hasattr(model, SCORE) and model.get_output_embeddings() is None


def scores_already(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a model with a score."""
    return any(name.endswith(KIND) for name in config.architectures or ())


def check_kind(
    config: PreTrainedConfig, model_args: ModelArguments, *, scores: bool, is_trainable: bool
) -> bool:
    """Refuses a reward model where tokens are predicted, and another classifier where one is due.

    Whether the model or an adapter brings a score is returned.
    """
    name = model_args.model_name_or_path
    found = [name] if scores_already(config) else []
    found += [
        adapter
        for adapter in model_args.adapter_name_or_path
        if task_of(adapter, model_args) == TaskType.SEQ_CLS
    ]
    if not scores:
        if found:
            raise ModelError(
                f"{found[0]} is a reward model (stage: rm): it scores answers and writes none, so "
                "it is no chat model, and no other stage goes on from it. Score answers by stage: "
                "rm with do_predict: true or by `luthier api`, or name the model that it was made "
                "of."
            )
        return False
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError(
            f"stage: rm: transformers has no {config.model_type} that scores sequences "
            "(AutoModelForSequenceClassification), so nothing could load what is learned. Choose "
            "another model."
        )
    if scores_already(config) and config.num_labels != 1:
        raise ModelError(
            f"{name} sorts sequences into {config.num_labels} classes; a reward model has one "
            "number (num_labels 1). Name the model that it was made of."
        )
    if not (found or is_trainable):
        raise ModelError(
            f"{name} has no score, and neither has an adapter that is given, so there is nothing "
            "to score answers with. Name the folder that a run of stage: rm wrote, or set do_train."
        )
    config.num_labels = 1
    return bool(found)


def task_of(adapter: str, model_args: ModelArguments) -> str | None:
    """What an adapter says that its model does; None where it says nothing, or cannot be read."""
    token = model_args.hf_hub_token
    try:
        said = PeftConfig.from_pretrained(
            str(Path(adapter).expanduser()) if Path(adapter).expanduser().is_dir() else adapter,
            subfolder=model_args.adapter_folder,
            token=None if token is None else token.get_secret_value(),
        )
        return None if said.task_type is None else str(said.task_type)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whoever loads it tells


def settle_score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, is_new: bool, seed: int
) -> None:
    """Has a model score in float32; a new score is drawn, of a seed always the same.

    It is made by `AutoModelForSequenceClassification`, and told the tokenizer's padding, for rows
    of several lengths.
    """
    head: Any = getattr(model, SCORE)
    head.__class__ = Score
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    with whole([head.weight], changes=True), torch.no_grad():
        if is_new:
            deviation = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(head.weight.shape, generator=generator) * deviation
            head.weight.copy_(drawn)


def lacks_score(adapter: str, subfolder: str | None) -> bool:
    """Whether the folder of an adapter has weights, but none of a score."""
    file = Path(adapter, subfolder or "", "adapter_model.safetensors")
    if not file.is_file():
        return False
    with safe_open(file, framework="pt") as saved:
        return not any(f"{SCORE}." in name for name in saved.keys())


def value_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The score among a model's weights, as `VALUE_HEAD` has it: with a bias of zero."""
    ends = (f"{SCORE}.weight", f"{SCORE}.modules_to_save.default.weight")
    (weight,) = [each for name, each in weights.items() if name.endswith(ends)]
    weight = weight.detach().cpu().float().contiguous()
    return {"v_head.summary.weight": weight, "v_head.summary.bias": torch.zeros(1)}


def choose_pad(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
    """Has a tokenizer pad with a token that ends no answer, or raises a ModelError without one.

    transformers reads a score at the last token of a row that is not padding, so where the end of
    an answer is the padding it would be read too early.
    """
    ends = {*ends, tokenizer.eos_token_id}
    if tokenizer.pad_token_id not in ends:
        return
    special = [str(each) for each in tokenizer.added_tokens_decoder.values() if each.special]
    for token in (tokenizer.unk_token, tokenizer.bos_token, *special):
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in ends:
            console.info(f"padding: {token}, since {tokenizer.pad_token} ends answers")
            tokenizer.pad_token = token
            return
    raise ModelError(
        f"stage: rm: the padding of this tokenizer, {tokenizer.pad_token}, ends answers, so other "
        "programs would read scores one token early, and it has no other special token to pad "
        "with. Add one: add_special_tokens: <|pad|>."
    )
