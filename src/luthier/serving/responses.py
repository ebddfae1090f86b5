"""News of an answer -> a response of OpenAI's newer form, whole or as its events; those kept."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from openai.types.responses import Response
from pydantic import TypeAdapter, ValidationError

from luthier.serving.answers import Count, News
from luthier.serving.completions import framed, new_id
from luthier.serving.conversation import read_items
from luthier.serving.forms import ChatForm, ChatMessage, Item, ResponseForm
from luthier.serving.problems import Refused, of_validation
from luthier.templates.answer_stream import CallBegins, CallGoesOn, Said, Thought
from luthier.templates.tool_format import dump

MOST_KEPT, MOST_KEPT_BYTES = 1000, 64 * 2**20
"""Responses that are kept for `previous_response_id`, and the bytes of their texts."""


@dataclass
class Kept:
    """The conversations behind the last responses; the oldest are forgotten first."""

    most: int = MOST_KEPT
    most_bytes: int = MOST_KEPT_BYTES
    _kept: OrderedDict[str, tuple[list[ChatMessage], int]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def find(self, response_id: str) -> list[ChatMessage]:
        """What was said up to a response, its answer included.

        Raises:
            Refused: with status 404, if it is not kept.
        """
        if response_id not in self._kept:
            raise Refused(
                f"previous_response_id: there is no response {response_id!r} here; the last "
                f"{self.most:,} are kept while the server runs",
                status=404,
                param="previous_response_id",
                code="previous_response_not_found",
            )
        self._kept.move_to_end(response_id)
        return self._kept[response_id][0]

    def keep(self, response_id: str, messages: list[ChatMessage]) -> None:
        """Keeps a conversation, and forgets what there is no room for."""
        size = sum(len(message.model_dump_json()) for message in messages)
        self._kept[response_id] = (messages, size)
        self._bytes += size
        while len(self._kept) > self.most or self._bytes > self.most_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed


def as_chat_form(form: ResponseForm, messages: Sequence[ChatMessage]) -> ChatForm:
    """The chat that a response is made by."""
    tools = [
        {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
        for tool in form.tools
    ]
    fields: dict[str, Any] = {
        "model": form.model,
        "messages": [message.model_dump(exclude_none=True) for message in messages],
        "temperature": form.temperature,
        "top_p": form.top_p,
        "max_completion_tokens": form.max_output_tokens,
        "parallel_tool_calls": form.parallel_tool_calls,
        "tools": tools,
    }
    if form.tool_choice is not None:
        choice = form.tool_choice
        named = {"type": "function", "function": {"name": getattr(choice, "name", "")}}
        fields["tool_choice"] = choice if isinstance(choice, str) else named
    wanted = form.text.format if form.text else None
    if wanted is not None:
        given = wanted.model_dump(exclude={"type"}, by_alias=True, exclude_none=True)
        fields["response_format"] = {"type": wanted.type} | (
            {"json_schema": given} if wanted.type == "json_schema" else {}
        )
    try:
        return ChatForm.model_validate(fields)
    except ValidationError as problem:
        raise of_validation(problem.errors(), fields) from problem


_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


@dataclass
class ResponseWriter:
    """Writes a response: items of thought, text and calls, each in the order it begins."""

    form: ResponseForm
    count: Count
    kept: Kept
    messages: Sequence[ChatMessage]  # that are answered, instructions left out
    id: str = field(default_factory=lambda: new_id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    items: list[dict[str, Any]] = field(default_factory=list)
    status: str = "in_progress"
    _number: int = 0  # of the next event

    async def whole(self, news: AsyncIterator[News]) -> Response:
        """The response once everything is there."""
        async for _ in self._events(news):
            pass
        return Response.model_validate(self._response())

    async def events(self, news: AsyncIterator[News]) -> AsyncIterator[str]:
        """Every event of the response as JSON, its type inside."""
        async for event in self._events(news):
            yield framed(dump(event), event["type"])

    def failure(self, problem: Refused) -> str:
        """The event of a response that failed underway."""
        self.status = "failed"
        error = {"code": "server_error", "message": str(problem)}
        event = self._event("response.failed", response=self._response() | {"error": error})
        return framed(dump(event), event["type"])

    async def _events(self, news: AsyncIterator[News]) -> AsyncIterator[dict[str, Any]]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response())
        reason = None
        async for one in news:
            reason = one.finish_reason or reason
            for part in one.parts:
                for event in self._take(part):
                    yield event
        is_whole = reason != "length"
        for event in self._close("completed" if is_whole else "incomplete"):
            yield event
        self.status = "completed" if is_whole else "incomplete"
        if self.form.store:
            answered = _ITEMS.validate_python(self.items)
            self.kept.keep(self.id, [*self.messages, *read_items(None, answered)])
        yield self._event(f"response.{self.status}", response=self._response())

    def _take(self, part: Thought | Said | CallBegins | CallGoesOn) -> list[dict[str, Any]]:
        if isinstance(part, CallBegins):
            call: dict[str, Any] = {
                "type": "function_call",
                "id": new_id("fc"),
                "call_id": new_id("call"),
                "name": part.name,
                "arguments": "",
                "status": "in_progress",
            }
            return self._open(call)
        if isinstance(part, CallGoesOn):
            self.items[-1]["arguments"] += part.arguments
            kind = "response.function_call_arguments.delta"
            return [self._of_item(kind, delta=part.arguments)]
        is_text = isinstance(part, Said)
        kind = "message" if is_text else "reasoning"
        events = []
        if not self.items or self.items[-1]["type"] != kind:
            item: dict[str, Any] = {"type": kind, "id": new_id("msg" if is_text else "rs")}
            item["status"] = "in_progress"
            item["role" if is_text else "summary"] = "assistant" if is_text else []
            item["content"] = []
            events += self._open(item)
            text_kind = "output_text" if is_text else "reasoning_text"
            content: dict[str, Any] = {"type": text_kind, "text": ""}
            content |= {"annotations": [], "logprobs": []} if is_text else {}
            events.append(
                self._of_item("response.content_part.added", content_index=0, part=dict(content))
            )
            self.items[-1]["content"].append(content)
        self.items[-1]["content"][0]["text"] += part.text
        told = {"delta": part.text, "content_index": 0} | ({"logprobs": []} if is_text else {})
        name = "output_text" if is_text else "reasoning_text"
        events.append(self._of_item(f"response.{name}.delta", **told))
        return events

    def _open(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        events = self._close("completed")
        self.items.append(item)
        shown = deepcopy(item)
        event = self._event(
            "response.output_item.added", output_index=len(self.items) - 1, item=shown
        )
        return [*events, event]

    def _close(self, status: str) -> list[dict[str, Any]]:
        """The events that end the last item."""
        if not self.items or self.items[-1]["status"] != "in_progress":
            return []
        item, events = self.items[-1], []
        item["status"] = status
        if item["type"] == "function_call":
            kind = "response.function_call_arguments.done"
            events.append(self._of_item(kind, arguments=item["arguments"], name=item["name"]))
        else:
            content = item["content"][0]
            is_text = item["type"] == "message"
            told = {"text": content["text"], "content_index": 0}
            told |= {"logprobs": []} if is_text else {}
            name = "output_text" if is_text else "reasoning_text"
            events.append(self._of_item(f"response.{name}.done", **told))
            events.append(
                self._of_item("response.content_part.done", content_index=0, part=content)
            )
        last = len(self.items) - 1
        return [*events, self._event("response.output_item.done", output_index=last, item=item)]

    def _of_item(self, kind: str, **fields: Any) -> dict[str, Any]:
        last = len(self.items) - 1
        return self._event(kind, item_id=self.items[-1]["id"], output_index=last, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1} | fields

    def _response(self) -> dict[str, Any]:
        form, is_over = self.form, self.status in ("completed", "incomplete")
        choice = form.tool_choice
        response = {
            "id": self.id,
            "object": "response",
            "created_at": float(self.created),
            "status": self.status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"}
            if self.status == "incomplete"
            else None,
            "instructions": form.instructions,
            "max_output_tokens": form.max_output_tokens,
            "metadata": form.metadata or {},
            "model": form.model,
            "output": [dict(item) for item in self.items],
            "parallel_tool_calls": form.parallel_tool_calls,
            "previous_response_id": form.previous_response_id,
            "store": form.store,
            "temperature": form.temperature,
            "text": form.text.model_dump(by_alias=True, exclude_none=True)
            if form.text
            else {"format": {"type": "text"}},
            "tool_choice": choice.model_dump()
            if choice and not isinstance(choice, str)
            else choice or "auto",
            "tools": [
                {"strict": None, "parameters": None} | tool.model_dump() for tool in form.tools
            ],
            "top_p": form.top_p,
            "truncation": "disabled",
        }
        if is_over:
            response["usage"] = {
                "input_tokens": self.count.prompt,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": self.count.answer,
                "output_tokens_details": {"reasoning_tokens": self.count.thought},
                "total_tokens": self.count.prompt + self.count.answer,
            }
        return response
