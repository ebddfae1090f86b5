"""The head of a reward model: one number for a sequence, read at its last token."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, TaskType
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from luthier import console
from luthier.arguments.model import ModelArguments
from luthier.errors import ModelError
from luthier.modeling.sharded import whole
from luthier.modeling.source import fetch_model, hub_options

SCORE = "score"
"""What transformers calls it in every decoder that classifies sequences."""

KIND = "ForSequenceClassification"
"""The end of the names of such classes."""

VALUE_HEAD = "value_head.safetensors"
"""The file in which LLaMA-Factory keeps it, beside a causal model or its adapter."""

SUMMARY = "v_head.summary"
"""What it is called there."""


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
    config: PreTrainedConfig,
    model_args: ModelArguments,
    *,
    scores: bool,
    is_trainable: bool,
    value_head: Path | None = None,
) -> bool:
    """Refuses a reward model where tokens are predicted, and another classifier where one is due.

    Whether the model, an adapter or a `value_head` brings a score is returned.
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
    is_known = bool(found) or value_head is not None
    if not (is_known or is_trainable):
        raise ModelError(
            f"{name} has no score, and neither has an adapter that is given, so there is nothing "
            "to score answers with. Name the folder that a run of stage: rm wrote, or set do_train."
        )
    config.num_labels = 1
    return is_known


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


def find_value_head(model_args: ModelArguments) -> Path | None:
    """`VALUE_HEAD` of the last adapter, or of the weights where there is none, as LLaMA-Factory.

    None where there is none, or the adapter has the score among its own weights.

    Raises:
        ModelError: if it is pickled.
    """
    adapters = model_args.adapter_name_or_path
    place = fetch_model(str(model_args.model_name_or_path)).path
    options = hub_options(model_args)
    del options["trust_remote_code"]
    if adapters:
        if task_of(adapters[-1], model_args) == TaskType.SEQ_CLS:
            return None
        is_here = Path(adapters[-1]).expanduser().is_dir()
        place = str(Path(adapters[-1]).expanduser()) if is_here else adapters[-1]
        options["subfolder"] = model_args.adapter_folder or ""
    pickled = Path(VALUE_HEAD).with_suffix(".bin").name
    for name in (VALUE_HEAD, pickled):
        try:
            file = Path(str(cached_file(place, name, **options)))
        except OSError:
            continue
        if name == VALUE_HEAD:
            return file
        raise ModelError(
            f"{file} can run code when it is opened and is not read. If you trust it, convert it: "
            'python -c "import torch; from safetensors.torch import save_file; '
            f"save_file(torch.load('{file}', weights_only=True), '{file.with_name(VALUE_HEAD)}')\""
        )
    return None


def settle_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_new: bool,
    seed: int,
    value_head: Path | None = None,
) -> None:
    """Has a model score in float32; a new score is drawn, of a seed always the same.

    Where there is a `value_head` the score is that. The model is made by
    `AutoModelForSequenceClassification`, and told the tokenizer's padding, for rows of several
    lengths.

    Raises:
        ModelError: if the `value_head` is of another model.
    """
    head: Any = getattr(model, SCORE)
    head.__class__ = Score
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    with whole([head.weight], changes=True), torch.no_grad():
        if value_head is not None:
            head.weight.copy_(_read_value_head(value_head, head.weight.shape))
        elif is_new:
            deviation = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(head.weight.shape, generator=generator) * deviation
            head.weight.copy_(drawn)


def _read_value_head(file: Path, shape: torch.Size) -> Tensor:
    """(1, H); what its bias adds to every score is said, since the score here has none."""
    try:
        saved = load_file(file)
    except SafetensorError as problem:
        raise ModelError(f"{file} cannot be read: {problem}. Copy it again.") from problem
    weight = saved.get(f"{SUMMARY}.weight")
    if weight is None or weight.shape != shape:
        found = {name: tuple(each.shape) for name, each in saved.items()}
        raise ModelError(
            f"{file} holds {found}, and this model's score is {SUMMARY}.weight of {tuple(shape)}. "
            "Give it with the base model that it was trained on."
        )
    bias = float(saved.get(f"{SUMMARY}.bias", torch.zeros(1)))
    left = f"; its bias, {bias:.6g} on every score, is left out" if bias else ""
    console.info(f"score: that of {file}{left}")
    return weight


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
    return {f"{SUMMARY}.weight": weight, f"{SUMMARY}.bias": torch.zeros(1)}


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
