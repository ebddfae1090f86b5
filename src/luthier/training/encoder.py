"""a configuration -> how its rows are encoded, without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.arguments.record import Arguments
from luthier.records import Text
from luthier.stages.stage import STAGES, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.templates.chat_template import Renders
    from luthier.templates.fit import Fitted


def load_stage(arguments: Arguments) -> Stage:
    """The stage, with tokenizer and template as a run of these arguments has them."""
    from luthier.modeling.tokenizer import load_tokenizer

    stage = STAGES.get(arguments.finetuning.stage)(arguments)
    tokenizer = load_tokenizer(arguments.model, min_length=arguments.data.cutoff_len)
    template, _ = fit_template(arguments, tokenizer)
    stage.fit(tokenizer, template)
    return stage


def fit_template(
    arguments: Arguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[Renders | None, Fitted]:
    """The template of a run, None for a stage of texts, and what was changed on its tokenizer."""
    from luthier.templates.fit import choose_template, fit_tokenizer

    is_text = STAGES.get(arguments.finetuning.stage).record is Text
    template = None if is_text else choose_template(arguments.data, tokenizer)
    return template, fit_tokenizer(tokenizer, template)
