"""News of answers -> OpenAI's chat completions and plain ones, whole or in chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_usage import CompletionTokensDetails
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from luthier.generating.request import Token
from luthier.serving.answers import Count, News
from luthier.serving.problems import Refused
from luthier.templates.answer_stream import CallBegins, CallGoesOn, Said, Thought


class Writes(Protocol):
    """A kind of reply: how it is written whole, and as server-sent events."""

    async def whole(self, news: AsyncIterator[News]) -> BaseModel:
        """The reply once everything is there."""

    def events(self, news: AsyncIterator[News]) -> AsyncIterator[str]:
        """Each event as it comes, and what ends them."""

    def failure(self, problem: Refused) -> str:
        """The event that ends a stream in which something went wrong."""


def framed(data: str, event: str = "") -> str:
    """A server-sent event."""
    return (f"event: {event}\n" if event else "") + f"data: {data}\n\n"


DONE = framed("[DONE]")


class Completions:
    """What ends streams of completions."""

    def failure(self, problem: Refused) -> str:
        """The error in place of a chunk."""
        return framed(json.dumps(problem.body()))


def new_id(kind: str) -> str:
    """An id that nobody guesses."""
    return f"{kind}-{uuid.uuid4().hex}"


def written(model: BaseModel) -> str:
    """JSON with the fields that were set."""
    return model.model_dump_json(exclude_unset=True, by_alias=True, warnings=False)


def usage(count: Count) -> CompletionUsage:
    """The tokens of a request."""
    return CompletionUsage(
        prompt_tokens=count.prompt,
        completion_tokens=count.answer,
        total_tokens=count.prompt + count.answer,
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=count.thought),
    )


@dataclass
class ChatWriter(Completions):
    """Writes a chat completion."""

    model: str  # its name, as the client said it
    tokenizer: PreTrainedTokenizerBase
    count: Count
    num_answers: int
    has_logprobs: bool = False
    has_usage: bool = False  # whether a stream ends with the usage
    metadata: Mapping[str, str] | None = None
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, news: AsyncIterator[News]) -> ChatCompletion:
        """The completion once all answers are there."""
        choices = [_Choice() for _ in range(self.num_answers)]
        async for one in news:
            choices[one.index].take(one, self)
        told = {"metadata": dict(self.metadata)} if self.metadata else {}
        return ChatCompletion.model_validate(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": self.created,
                "model": self.model,
                "choices": [choice.written(at, self) for at, choice in enumerate(choices)],
                "usage": usage(self.count),
            }
            | told
        )

    async def events(self, news: AsyncIterator[News]) -> AsyncIterator[str]:
        """Chunks: the role, what comes, the reason of the end, the usage where asked for."""
        begun = {"role": "assistant", "content": "", "refusal": None}
        ids: dict[tuple[int, int], str] = {}
        for index in range(self.num_answers):
            yield self._chunk(index, begun)
        async for one in news:
            logprobs = self._logprobs(one)
            for part in one.parts:
                yield self._chunk(one.index, _delta(part, one.index, ids), logprobs=logprobs)
                logprobs = None
            if one.finish_reason:
                yield self._chunk(one.index, {}, one.finish_reason, logprobs)
        if self.has_usage:
            yield self._of([], usage(self.count))
        yield DONE

    def _chunk(
        self, index: int, delta: Mapping[str, Any], reason: str | None = None, logprobs: Any = None
    ) -> str:
        told = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return self._of([told])

    def _of(self, choices: list[Any], told: CompletionUsage | None = None) -> str:
        chunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        # where it is asked for, all chunks have the field, and the last one a value
        usage_of = {"usage": told} if self.has_usage else {}
        return framed(written(ChatCompletionChunk.model_validate(chunk | usage_of)))

    def _logprobs(self, one: News) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        return {
            "content": [token_logprob(self.tokenizer, each) for each in one.tokens],
            "refusal": None,
        }


@dataclass
class _Choice:
    """One answer of a chat completion as it grows."""

    said: str = ""
    thought: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = "stop"

    def take(self, one: News, writer: ChatWriter) -> None:
        self.tokens += one.tokens
        self.finish_reason = one.finish_reason or self.finish_reason
        for part in one.parts:
            if isinstance(part, Said):
                self.said += part.text
            elif isinstance(part, Thought):
                self.thought += part.text
            elif isinstance(part, CallBegins):
                function = {"name": part.name, "arguments": ""}
                self.calls.append({"id": new_id("call"), "type": "function", "function": function})
            else:
                self.calls[part.index]["function"]["arguments"] += part.arguments

    def written(self, index: int, writer: ChatWriter) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self.said if self.said or not self.calls else None,
            "refusal": None,
        }
        if self.thought:
            message["reasoning_content"] = self.thought
        if self.calls:
            message["tool_calls"] = self.calls
        logprobs = None
        if writer.has_logprobs:
            told = [token_logprob(writer.tokenizer, each) for each in self.tokens]
            logprobs = {"content": told, "refusal": None}
        return {
            "index": index,
            "message": message,
            "finish_reason": self.finish_reason,
            "logprobs": logprobs,
        }


def _delta(
    part: Said | Thought | CallBegins | CallGoesOn, answer: int, ids: dict[tuple[int, int], str]
) -> dict[str, Any]:
    if isinstance(part, Said):
        return {"content": part.text}
    if isinstance(part, Thought):
        return {"reasoning_content": part.text}
    call: dict[str, Any] = {"index": part.index}
    if isinstance(part, CallBegins):
        ids[answer, part.index] = new_id("call")
        call |= {"id": ids[answer, part.index], "type": "function"}
        call["function"] = {"name": part.name, "arguments": ""}
    else:
        call["function"] = {"arguments": part.arguments}
    return {"tool_calls": [call]}


def token_logprob(tokenizer: PreTrainedTokenizerBase, token: Token) -> dict[str, Any]:
    """A token with its log-probability and the likeliest beside it."""
    return _spelled(tokenizer, token.id, token.logprob or 0.0) | {
        "top_logprobs": [_spelled(tokenizer, *each) for each in token.top]
    }


def _spelled(tokenizer: PreTrainedTokenizerBase, token_id: int, logprob: float) -> dict[str, Any]:
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    return {
        "token": text,
        "logprob": max(logprob, -9999.0),
        "bytes": None if "\ufffd" in text else [*text.encode()],
    }


@dataclass
class CompletionWriter(Completions):
    """Writes a plain completion."""

    model: str
    tokenizer: PreTrainedTokenizerBase
    count: Count
    num_answers: int
    has_logprobs: bool = False
    has_usage: bool = False
    id: str = field(default_factory=lambda: new_id("cmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, news: AsyncIterator[News]) -> Completion:
        """The completion once all answers are there."""
        texts = [""] * self.num_answers
        reasons = ["stop"] * self.num_answers
        tokens: list[list[Token]] = [[] for _ in texts]
        async for one in news:
            texts[one.index] += _text(one)
            tokens[one.index] += one.tokens
            reasons[one.index] = one.finish_reason or reasons[one.index]
        choices = [
            self._choice(at, texts[at], reasons[at], tokens[at], 0) for at in range(len(texts))
        ]
        return self._of(choices, usage(self.count))

    async def events(self, news: AsyncIterator[News]) -> AsyncIterator[str]:
        """The text as it comes, the reason of the end with the last of it, the usage."""
        offsets = [0] * self.num_answers
        async for one in news:
            text = _text(one)
            choice = self._choice(
                one.index, text, one.finish_reason, one.tokens, offsets[one.index]
            )
            offsets[one.index] += len(text)
            yield framed(written(self._of([choice])))
        if self.has_usage:
            yield framed(written(self._of([], usage(self.count))))
        yield DONE

    def _of(
        self, choices: list[CompletionChoice], told: CompletionUsage | None = None
    ) -> Completion:
        reply = Completion(
            id=self.id,
            object="text_completion",
            created=self.created,
            model=self.model,
            choices=choices,
        )
        if told is not None:
            reply.usage = told
        return reply

    def _choice(
        self, index: int, text: str, reason: str | None, tokens: Any, offset: int
    ) -> CompletionChoice:
        logprobs = None
        if self.has_logprobs:
            told = [token_logprob(self.tokenizer, each) for each in tokens]
            offsets, at = [], offset
            for each in told:
                offsets.append(at)
                at += len(each["token"])
            logprobs = {
                "tokens": [each["token"] for each in told],
                "token_logprobs": [each["logprob"] for each in told],
                "top_logprobs": [
                    {one["token"]: one["logprob"] for one in each["top_logprobs"]} for each in told
                ],
                "text_offset": offsets,
            }
        # in a stream, the reason is null until the end
        return CompletionChoice.model_construct(
            index=index, text=text, finish_reason=reason, logprobs=logprobs
        )


def _text(one: News) -> str:
    return "".join(part.text for part in one.parts if isinstance(part, Said))
