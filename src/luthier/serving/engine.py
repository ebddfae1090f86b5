"""A model, its tokenizer and its template, answering conversations as training showed them."""

from __future__ import annotations

import sys
import threading
from collections import abc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from luthier import console
from luthier.arguments.generating import GeneratingArguments
from luthier.arguments.record import Arguments
from luthier.data.encode import Encoder, EncodingOptions
from luthier.errors import LuthierError, TemplateError
from luthier.generating.generator import Generator, context_length, new_token_limit
from luthier.generating.request import Request, Sampling
from luthier.generating.text_stream import TextStream
from luthier.records import Conversation, Message
from luthier.serving.scores import Scorer
from luthier.templates.chat_template import Renders


class ConversationTooLong(LuthierError):
    """A conversation leaves the model no room to answer."""


@dataclass(frozen=True)
class Engine:
    """Answers conversations, any number at once."""

    model: Any  # on its device, adapter and all
    tokenizer: PreTrainedTokenizerBase  # fitted to the template
    template: Renders  # how conversations read to the model
    stop_token_ids: tuple[int, ...]  # tokens that end an answer; they are never shown
    generating: GeneratingArguments  # how tokens are chosen unless a call says otherwise
    scores: bool = False  # whether the model says a score of answers, and no tokens
    use_cache: bool = True  # whether keys and values of earlier tokens are kept
    split_special_tokens: bool = False
    """Whether special tokens in messages are read as their letters."""
    _encoding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def stream(
        self,
        messages: Sequence[Message],
        *,
        system: str | None = None,
        tools: str | None = None,
        generating: GeneratingArguments | None = None,
    ) -> abc.Generator[str, None, None]:
        """The answer to the last message, the user's or a tool's, as it comes.

        Closing the iterator stops the model. Beam search knows its answer only at the end and
        gives it in one piece. `tools` is a JSON list of descriptions; `generating` wins over the
        engine's own.

        Raises:
            ConversationTooLong: if the model has no position left for an answer.
        """
        settings = generating or self.generating
        asked = Conversation(tuple(messages), system=system, tools=tools)
        prompt = self.encode(asked)
        limit = new_token_limit(settings, len(prompt), self.model)
        if limit == 0:
            raise ConversationTooLong(
                f"The conversation has {len(prompt):,} tokens and leaves no room for an answer: "
                f"the model reads {context_length(self.model) or 'any number of'} tokens, "
                f"max_length is {self.generating.max_length:,}. Begin a new one, or raise "
                "max_length."
            )
        sampling = Sampling.of(settings, max_new_tokens=limit)
        answering = self.generator.submit(Request(prompt, sampling, self.stop_token_ids))
        text = TextStream(self.tokenizer, settings.skip_special_tokens)
        try:
            for token in answering:
                if token.id not in self.stop_token_ids and (piece := text.push(token.id)):
                    yield piece
        finally:
            answering.cancel()
            answering.wait()
        if rest := text.end():
            yield rest

    @cached_property
    def generator(self) -> Generator:
        """What answers all conversations, those of several threads together."""
        return Generator(self.model, self.tokenizer, use_cache=self.use_cache)

    @cached_property
    def _encoder(self) -> Encoder:
        options = EncodingOptions(sys.maxsize, split_special_tokens=self.split_special_tokens)
        return Encoder(self.tokenizer, self.template, options)

    @cached_property
    def scorer(self) -> Scorer:
        """What scores answers, those of several threads in turns."""
        return Scorer(self.model, self.tokenizer.pad_token_id or 0)

    def encode(self, asked: Conversation, *, is_answered: bool = False) -> list[int]:
        """The token ids of a conversation up to where the model is to answer, or of a whole one.

        Raises:
            TemplateError: if the template cannot render it.
        """
        with self._encoding:
            if is_answered:
                prompt = replace(asked, messages=asked.messages[:-1])
                (outcome,) = self._encoder.judge([(prompt, asked.messages[-1:])])
            else:
                answered = replace(asked, messages=(*asked.messages, Message("assistant", "")))
                (outcome,) = self._encoder.ask([answered])
        if not isinstance(outcome, list):
            raise TemplateError(str(outcome))
        return [*outcome[0].input_ids]


def load_engine(arguments: Arguments, *, scores: bool = False) -> Engine:
    """Tokenizer, template, model and adapter as the arguments name them, ready to answer.

    Of stage `rm`, with `scores`, it is one that scores answers.
    """
    from transformers.utils.logging import disable_progress_bar

    from luthier.modeling.dtypes import without_emulation
    from luthier.modeling.loader import load_model
    from luthier.modeling.safe_loading import reading_plain_data
    from luthier.modeling.tokenizer import load_tokenizer
    from luthier.stages.stage import STAGES
    from luthier.templates.fit import choose_template, fit_tokenizer

    disable_progress_bar()
    scores = scores and STAGES.get(arguments.finetuning.stage).scores
    arguments = without_emulation(arguments)
    tokenizer = load_tokenizer(arguments.model)
    template = choose_template(arguments.data, tokenizer)
    fitted = fit_tokenizer(tokenizer, template)
    with reading_plain_data():
        model = load_model(arguments, tokenizer, is_trainable=False, scores=scores)
    if torch.accelerator.is_available() and model.device.type == "cpu":
        model.to(torch.accelerator.current_accelerator())
    model.eval()
    console.info(f"template: {template.name}; device: {model.device}; dtype: {model.dtype}")
    return Engine(
        model,
        tokenizer,
        template,
        tuple(fitted.stop_token_ids),
        arguments.generating,
        scores=scores,
        use_cache=arguments.model.use_kv_cache,
        split_special_tokens=arguments.model.split_special_tokens,
    )
