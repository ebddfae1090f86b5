"""A model, its tokenizer and its template, answering conversations as training showed them."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation import BaseStreamer

from luthier import console
from luthier.arguments.generating import GeneratingArguments
from luthier.arguments.record import Arguments
from luthier.data.check import RowProblem
from luthier.data.encode import Encoder, EncodingOptions
from luthier.errors import LuthierError, TemplateError
from luthier.modeling.generation import (
    answering,
    context_length,
    generation_config,
    new_token_limit,
)
from luthier.records import Conversation, Message
from luthier.serving.text_stream import TextStream
from luthier.templates.template import Renders


class ConversationTooLong(LuthierError):
    """A conversation leaves the model no room to answer."""


@dataclass(frozen=True)
class Engine:
    """Answers conversations, one at a time.

    Attributes:
        model: on its device, adapter and all.
        tokenizer: fitted to the template.
        template: how conversations read to the model.
        stop_token_ids: tokens that end an answer; they are never shown.
        generating: how tokens are chosen unless a call says otherwise.
        use_cache: whether keys and values of earlier tokens are kept.
        split_special_tokens: whether special tokens in messages are read as their letters.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    template: Renders
    stop_token_ids: tuple[int, ...]
    generating: GeneratingArguments
    use_cache: bool = True
    split_special_tokens: bool = False
    _busy: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def stream(
        self,
        messages: Sequence[Message],
        *,
        system: str | None = None,
        tools: str | None = None,
        generating: GeneratingArguments | None = None,
    ) -> Generator[str, None, None]:
        """The answer to the last message, as it comes.

        Closing the iterator stops the model. Beam search knows its answer only at the end and
        gives it in one piece.

        Args:
            messages: the conversation so far, ending with the user's (or a tool's) message.
            system: the system prompt; the template's own when None.
            tools: a JSON list of tool descriptions.
            generating: wins over the engine's own.

        Raises:
            ConversationTooLong: if the model has no position left for an answer.
        """
        settings = generating or self.generating
        prompt = self._encode(Conversation(tuple(messages), system=system, tools=tools))
        config = generation_config(
            settings, self.tokenizer, self.stop_token_ids, use_cache=self.use_cache
        )
        config.max_new_tokens = new_token_limit(settings, len(prompt), self.model)
        if config.max_new_tokens == 0:
            raise ConversationTooLong(self._too_long(len(prompt)))
        text = TextStream(self.tokenizer, settings.skip_special_tokens)
        for token_id in self._new_tokens(prompt, config):
            if token_id not in self.stop_token_ids:
                piece = text.push(token_id)
                if piece:
                    yield piece
        rest = text.end()
        if rest:
            yield rest

    def answer(
        self,
        messages: Sequence[Message],
        *,
        system: str | None = None,
        tools: str | None = None,
        generating: GeneratingArguments | None = None,
    ) -> str:
        """The whole answer to the last message; see `stream`."""
        return "".join(self.stream(messages, system=system, tools=tools, generating=generating))

    @cached_property
    def _encoder(self) -> Encoder:
        options = EncodingOptions(sys.maxsize, split_special_tokens=self.split_special_tokens)
        return Encoder(self.tokenizer, self.template, options)

    def _encode(self, asked: Conversation) -> list[int]:
        answered = replace(asked, messages=(*asked.messages, Message("assistant", "")))
        with self._busy:
            (example,) = self._encoder.encode_prompts([answered])
        if isinstance(example, RowProblem):
            raise TemplateError(str(example))
        return [*example.input_ids]

    def _new_tokens(self, prompt: list[int], config: GenerationConfig) -> Iterator[int]:
        with self._busy:
            run = _Generation(self.model, prompt, config)
            run.start()
            try:
                yield from run.tokens()
            finally:
                run.stop()

    def _too_long(self, prompt_length: int) -> str:
        return (
            f"The conversation has {prompt_length:,} tokens and leaves no room for an answer: the "
            f"model reads {context_length(self.model) or 'any number of'} tokens, max_length is "
            f"{self.generating.max_length:,}. Begin a new one, or raise max_length."
        )


def load_engine(arguments: Arguments) -> Engine:
    """Tokenizer, template, model and adapter as the arguments name them, ready to answer."""
    from transformers.utils.logging import disable_progress_bar

    from luthier.modeling.dtypes import without_emulation
    from luthier.modeling.loader import load_model
    from luthier.modeling.plain_data import reading_plain_data
    from luthier.modeling.tokenizer import load_tokenizer
    from luthier.templates.choose import choose_template
    from luthier.templates.fit import fit_tokenizer

    disable_progress_bar()
    arguments = without_emulation(arguments)
    tokenizer = load_tokenizer(arguments.model)
    template = choose_template(arguments.data, tokenizer)
    fitted = fit_tokenizer(tokenizer, template)
    with reading_plain_data():
        model = load_model(arguments, tokenizer, is_trainable=False)
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
        use_cache=arguments.model.use_kv_cache,
        split_special_tokens=arguments.model.split_special_tokens,
    )


class _Generation(threading.Thread):
    """One call of `generate` in a thread of its own, its tokens handed over by a queue."""

    def __init__(self, model: Any, prompt: list[int], config: GenerationConfig) -> None:
        super().__init__(daemon=True, name="luthier-generate")
        self._model, self._prompt, self._config = model, prompt, config
        self._queue: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def run(self) -> None:
        try:
            self._generate()
        except BaseException as problem:  # raised again where the tokens are read
            self._queue.put(problem)
        self._queue.put(None)

    def tokens(self) -> Iterator[int]:
        """Token ids as the model makes them."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        """Ends the generation after the token it is at."""
        self._stopped.set()
        self.join()

    def _generate(self) -> None:
        input_ids = torch.tensor([self._prompt], device=self._model.device)
        has_beams = self._config.num_beams > 1
        with answering(self._model), torch.no_grad():
            sequences = self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=self._config,
                streamer=None if has_beams else _Tap(self._queue),
                stopping_criteria=[_WhenSet(self._stopped)],
            )
        if has_beams:
            for token_id in sequences[0, len(self._prompt) :].tolist():
                self._queue.put(token_id)


class _Tap(BaseStreamer):
    """Hands each new token on; the first tensor is the prompt."""

    def __init__(self, target: queue.SimpleQueue[int | BaseException | None]) -> None:
        self._target = target
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Takes what `generate` has just made."""
        if not self._is_prompt:
            for token_id in value.flatten().tolist():
                self._target.put(token_id)
        self._is_prompt = False

    def end(self) -> None:
        """Nothing is held back."""


class _WhenSet(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor | None, **others: Any
    ) -> torch.Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)
