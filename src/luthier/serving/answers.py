"""Requests of one client -> their answers as they come: text, thoughts, calls, logprobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from luthier.generating.request import Answer, Answering, Request, Token
from luthier.generating.text_stream import TextStream
from luthier.serving.engine import Engine
from luthier.serving.problems import Refused
from luthier.templates.answer_stream import (
    AnswerStream,
    CallBegins,
    Part,
    Said,
    call_form,
    opens_thought,
)

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
Item: TypeAlias = Token | Answer | BaseException
Submit: TypeAlias = Callable[[Request, Callable[[Item], None]], Answering]

PROMPT_END = 16
"""Tokens of a prompt that are looked at for a thought that it opens."""


@dataclass(frozen=True)
class Reading:
    """How answers are read."""

    engine: Engine
    reads_calls: bool = False  # whether calls of tools are told from text
    tool_names: Sequence[str] = ()
    one_call: bool = False  # whether an answer ends with its first call
    reads_thoughts: bool = True  # whether thoughts are; without both all is text


@dataclass(frozen=True)
class News:
    """What a token, or the end, brought to one of the answers."""

    index: int  # the answer's
    parts: Sequence[Part] = ()
    tokens: Sequence[Token] = ()  # those of the answer since the last news, a stop token left out
    finish_reason: FinishReason | None = None  # with the last of an answer


@dataclass
class Count:
    """Tokens of one client's request."""

    prompt: int
    answer: int = 0  # made, stop tokens too
    thought: int = 0  # of those


@dataclass(frozen=True)
class Asked:
    """What a client's request asks of the generator."""

    reading: Reading
    requests: Sequence[Request]  # one for each answer
    count: Count


async def follow(
    asked: Asked, submit: Submit, *, until: float, leave: Callable[[], None]
) -> AsyncGenerator[News, None]:
    """The answers, each piece as it comes; closing the iterator drops them.

    However slowly they are taken, the model goes on, and `leave` is called when it is done.

    Args:
        asked: the requests; their tokens are counted in it.
        submit: of the generator.
        until: the loop's time by which all must be there.
        leave: gives the place to others; may be called twice.

    Raises:
        Refused: if the deadline has come.
        Exception: what goes wrong in the model.
    """
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[tuple[int, Item]] = asyncio.Queue()
    reading, requests, count = asked.reading, asked.requests, asked.count
    unfinished = len(requests)

    def take(index: int, item: Item) -> None:
        nonlocal unfinished
        heard.put_nowait((index, item))
        unfinished -= not isinstance(item, Token)
        if not unfinished:
            leave()

    def hear(index: int, item: Item) -> None:
        try:
            loop.call_soon_threadsafe(take, index, item)
        except RuntimeError:
            pass  # the server has ended meanwhile

    late = Refused("the deadline of the request has come", status=504, code="deadline")
    alarm = loop.call_at(until, heard.put_nowait, (0, late))
    readers = [_Reader(reading, request) for request in requests]
    answerings = [submit(each, partial(hear, index)) for index, each in enumerate(requests)]
    going = set(range(len(requests)))
    try:
        while going:
            index, item = await heard.get()
            if isinstance(item, BaseException):
                raise item
            if index not in going:
                continue
            if isinstance(item, Token):
                count.answer += 1
                news = readers[index].push(item)
                count.thought += readers[index].is_thinking
            else:
                news = readers[index].end(item)
            if news.finish_reason:
                going.discard(index)
                answerings[index].cancel()
            if news.parts or news.finish_reason:
                yield replace(news, index=index)
    finally:
        alarm.cancel()
        for answering in answerings:
            answering.cancel()
        leave()


class _Reader:
    """Reads one answer: tokens -> text up to a stop -> thoughts, text and calls."""

    def __init__(self, reading: Reading, request: Request) -> None:
        self._reading, self._request = reading, request
        engine = reading.engine
        self._text = TextStream(engine.tokenizer, skip_special_tokens=False)
        self._hidden = _hidden_tokens(reading)
        self._stream: AnswerStream | None = None
        if reading.reads_calls or reading.reads_thoughts:
            ending = str(engine.tokenizer.decode([*request.prompt[-PROMPT_END:]]))
            self._stream = AnswerStream(
                engine.template,
                reads_calls=reading.reads_calls,
                tool_names=reading.tool_names,
                is_thinking=reading.reads_thoughts and opens_thought(engine.template, ending),
            )
        self._tokens: list[Token] = []
        self._held = ""  # text that may begin a stop string
        self._has_stopped = self._has_called = False

    @property
    def is_thinking(self) -> bool:
        """Whether the answer is within a thought."""
        return self._stream is not None and self._stream.is_thinking

    def push(self, token: Token) -> News:
        """What one more token brings."""
        if token.id in self._request.stop_token_ids:
            return News(0)
        self._tokens.append(token)
        if token.id in self._hidden:
            return News(0)
        return self._news(self._read(self._up_to_stop(self._text.push(token.id))))

    def end(self, answer: Answer) -> News:
        """What is left when the model has ended."""
        text = self._up_to_stop(self._text.end())
        if not self._has_stopped:
            text += self._held
        parts = self._read(text)
        if self._stream is not None:
            parts += self._stream.end()
        is_cut = answer.finish_reason == "length" and not self._has_stopped
        return self._news(parts, "length" if is_cut else "stop")

    def _read(self, text: str) -> list[Part]:
        if self._stream is not None:
            return self._stream.push(text) if text else []
        return [Said(text)] if text else []

    def _news(self, parts: list[Part], reason: FinishReason | None = None) -> News:
        for at, part in enumerate(parts):
            if isinstance(part, CallBegins):
                if self._has_called and self._reading.one_call:
                    parts, reason = parts[:at], "stop"
                    break
                self._has_called = True
        if reason == "stop" and self._has_called:
            reason = "tool_calls"
        if not parts and reason is None:
            return News(0)
        tokens, self._tokens = self._tokens, []
        return News(0, parts, tokens, reason)

    def _up_to_stop(self, text: str) -> str:
        """The text up to a stop string; what may begin one is held back."""
        if self._has_stopped:
            return ""
        self._held += text
        stops = self._request.stop_strings
        places = [self._held.index(stop) for stop in stops if stop in self._held]
        if places:
            self._has_stopped = True
            return self._held[: min(places)]
        keep = max(
            (
                length
                for stop in stops
                for length in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )
        sure = self._held[: len(self._held) - keep]
        self._held = self._held[len(sure) :]
        return sure


def _hidden_tokens(reading: Reading) -> frozenset[int]:
    """Special tokens that are not shown: all but those that stand in thought and call words."""
    engine = reading.engine
    shown = " ".join((*engine.template.content_words, *engine.template.thought_words))
    if reading.reads_calls and (form := call_form(engine.template)):
        shown += f" {form.before_name} {form.after_name} {form.after_arguments}"
    tokenizer = engine.tokenizer
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return frozenset(token_id for token_id, name in named if name not in shown)
