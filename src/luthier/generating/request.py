"""What is asked of a model, and what comes of it: prompts as token ids, answers as tokens."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from luthier.arguments.generating import GeneratingArguments

BARE = ""
"""The adapter's name that stands for the model without any."""

FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen, and how many; the values given here change nothing.

    The order is that of transformers and vLLM: penalties, bias, what is allowed, temperature,
    `top_k`, `top_p`. Beams know neither penalties of OpenAI's kind nor bias, and draw nothing.
    """

    do_sample: bool = False  # False takes the likeliest; so does a temperature of 0
    temperature: float = 1.0  # what logits are divided by
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn from."""
    top_k: int = 0  # only so many of the likeliest are drawn from; 0 is all
    repetition_penalty: float = 1.0
    """What positive logits of tokens in prompt and answer are divided by, and negative ones
    multiplied (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """What is taken from the logits of tokens that the answer has, as OpenAI defines it."""
    frequency_penalty: float = 0.0  # the same for each time that the answer has it
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to logits by token id
    seed: int | None = None
    """Of the answer's own random numbers; None draws one from torch's global generator."""
    max_new_tokens: int = 1024  # the model's positions may leave fewer
    num_beams: int = 1  # more than one searches, and the whole answer comes at its end
    length_penalty: float = 1.0  # exponent of the length in a beam's score

    @classmethod
    def of(
        cls, generating: GeneratingArguments, *, max_new_tokens: int, seed: int | None = None
    ) -> Sampling:
        """What the generating arguments mean; for the limit see `new_token_limit`."""
        return cls(
            do_sample=generating.do_sample,
            temperature=generating.temperature,
            top_p=generating.top_p,
            top_k=generating.top_k,
            repetition_penalty=generating.repetition_penalty,
            seed=seed,
            max_new_tokens=max_new_tokens,
            num_beams=generating.num_beams,
            length_penalty=generating.length_penalty,
        )

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return not self.do_sample or self.temperature == 0


@dataclass(frozen=True, eq=False)
class Request:
    """One answer that is wanted; n answers to one prompt are n requests."""

    prompt: Sequence[int]  # token ids, at least one
    sampling: Sampling = Sampling()
    stop_token_ids: Sequence[int] = ()  # tokens that end the answer
    stop_strings: Sequence[str] = ()  # texts that end it; they are found on decoded text
    skip_special_tokens: bool = True  # whether the text that stop strings are found on has none
    adapter: str | None = None
    """One of peft's adapters by name, or `BARE`; None leaves the model as it stands."""
    num_logprobs: int | None = None
    """None leaves log-probabilities out; 0 gives that of each token, more those of the likeliest
    beside it. They are the model's own, before anything of `sampling`."""
    allowed: Callable[[Sequence[int]], Tensor | None] | None = None
    """From the new tokens so far, which token may come next: (V,) bool on any device, or None where
    every one may. It is asked once for each token, in their order."""


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    id: int
    logprob: float | None = None  # None where they were not asked for
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens, likeliest first


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    tokens: tuple[Token, ...]  # the last is a stop token where one ended it
    finish_reason: FinishReason
    stop: str | None = None  # the stop string that ended it; its tokens are among `tokens`

    @property
    def token_ids(self) -> list[int]:
        """The ids alone."""
        return [token.id for token in self.tokens]


class Answering:
    """An answer that is being made; iterating gives its tokens as they come.

    What goes wrong in the model is raised where the tokens, or the answer, are read.

    Args:
        request: what was asked.
        hear: called on the worker's thread with each token, then once with the answer or with what
            went wrong; the tokens are then not kept for iterating. It must be quick.
    """

    def __init__(
        self,
        request: Request,
        hear: Callable[[Token | Answer | BaseException], None] | None = None,
    ) -> None:
        self.request = request
        self.is_cancelled = False
        self._hear = hear
        self._tokens: queue.SimpleQueue[Token | None] = queue.SimpleQueue()
        self._end: Answer | BaseException | None = None
        self._has_ended = threading.Event()

    def cancel(self) -> None:
        """Drops the request before the next step; what was made so far becomes the answer."""
        self.is_cancelled = True

    @property
    def is_done(self) -> bool:
        """Whether the answer is whole, or failed."""
        return self._has_ended.is_set()

    def wait(self) -> None:
        """Returns once the model no longer computes it."""
        self._has_ended.wait()

    @property
    def answer(self) -> Answer:
        """The whole answer; waits for it."""
        self.wait()
        if isinstance(self._end, Answer):
            return self._end
        assert self._end is not None
        raise self._end

    def __iter__(self) -> Iterator[Token]:
        while (token := self._tokens.get()) is not None:
            yield token
        self._tokens.put(None)
        if isinstance(self._end, BaseException):
            raise self._end

    def put(self, token: Token) -> None:
        """Takes one more token from the generator."""
        if self._hear is None:
            self._tokens.put(token)
        else:
            self._hear(token)

    def end(self, end: Answer | BaseException) -> None:
        """Takes the whole answer, or what went wrong, from the generator."""
        self._end = end
        self._has_ended.set()
        self._tokens.put(None)
        if self._hear is not None:
            self._hear(end)
