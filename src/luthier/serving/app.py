"""The routes of the API, over one generator."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Sequence,
)
from contextlib import aclosing, contextmanager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from openai.types import Model
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from luthier import __version__, console
from luthier.errors import LuthierError
from luthier.serving.admission import Doors, Limits, within
from luthier.serving.answers import Asked, News, follow
from luthier.serving.asking import Served, ask_chat, ask_completion, read_scored
from luthier.serving.completions import ChatWriter, CompletionWriter, Writes, new_id, written
from luthier.serving.conversation import read_items
from luthier.serving.forms import ChatForm, CompletionForm, ResponseForm, Sampled, ScoreForm
from luthier.serving.guard import App, Guard
from luthier.serving.problems import Refused, of_validation
from luthier.serving.responses import Kept, ResponseWriter, as_chat_form

Result = TypeVar("Result")

ROUTES = (
    *("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses"),
    *("/v1/score", "/v1/score/evaluation"),
    *("/health", "/metrics", "/openapi.json"),
)
"""Routes that are counted by their name."""


def make_app(
    models: Sequence[Served],
    *,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: frozenset[str] | None = None,
    root_path: str = "",
) -> App:
    """The server as an ASGI app.

    Args:
        models: by their names; all answer with the generator of the first one's engine.
        limits: of requests and clients.
        token: that every request must carry; None asks for none.
        hosts: names that `Host` may have; None takes any.
        root_path: under which a proxy offers the server.
    """
    doors = Doors(limits or Limits())
    desk, kept = Desk(models, doors), Kept()
    app = FastAPI(
        title="luthier",
        version=__version__,
        docs_url=None,  # its page loads programs from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_model(one) for one in models]})

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> JSONResponse:
        return JSONResponse(_model(desk.find(name)))

    @app.post("/v1/chat/completions")
    async def chat(form: ChatForm, request: Request) -> Response:
        served = desk.find(form.model)

        def write(asked: Asked) -> Writes:
            return ChatWriter(
                form.model,
                served.engine.tokenizer,
                asked.count,
                form.n,
                form.logprobs,
                _tells_usage(form),
                form.metadata,
            )

        return await desk.serve(request, form.n, form.stream, lambda: ask_chat(form, served), write)

    @app.post("/v1/completions")
    async def complete(form: CompletionForm, request: Request) -> Response:
        served = desk.find(form.model)

        def write(asked: Asked) -> Writes:
            return CompletionWriter(
                form.model,
                served.engine.tokenizer,
                asked.count,
                len(asked.requests),
                form.logprobs is not None,
                _tells_usage(form),
            )

        is_many = isinstance(form.prompt, list) and not isinstance(form.prompt[0], int)
        num_answers = form.n * (len(form.prompt) if is_many else 1)
        return await desk.serve(
            request, num_answers, form.stream, lambda: ask_completion(form, served), write
        )

    @app.post("/v1/responses")
    async def respond(form: ResponseForm, request: Request) -> Response:
        served = desk.find(form.model)
        before = kept.find(form.previous_response_id) if form.previous_response_id else []
        messages = [*before, *read_items(None, form.input)]
        chat_form = as_chat_form(form, [*read_items(form.instructions, []), *messages])

        def write(asked: Asked) -> Writes:
            return ResponseWriter(form, asked.count, kept, messages)

        return await desk.serve(request, 1, form.stream, lambda: ask_chat(chat_form, served), write)

    @app.post("/v1/score")
    @app.post("/v1/score/evaluation")  # what LLaMA-Factory calls it
    async def score(form: ScoreForm, request: Request) -> Response:
        engine = desk.find(form.model, scores=True).engine

        def measure(is_over: Callable[[], bool]) -> tuple[list[float], int]:
            ids = read_scored(form, engine)
            return engine.scorer.score(ids, is_over), sum(map(len, ids))

        scores, num_tokens = await desk.measure(request, measure)
        told = {"id": new_id("scoreval"), "object": "score.evaluation", "model": form.model}
        counts = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return JSONResponse(told | {"scores": scores, "usage": counts})

    @app.get("/health")
    async def health() -> JSONResponse:
        if desk.problem:
            raise Refused(desk.problem, status=503, code="unhealthy")
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(doors.metrics(__version__), media_type="text/plain; version=0.0.4")

    @app.exception_handler(Refused)
    async def refuse(request: Request, problem: Refused) -> JSONResponse:
        return JSONResponse(problem.body(), problem.status, problem.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_form(request: Request, problem: RequestValidationError) -> JSONResponse:
        return await refuse(request, of_validation(problem.errors(), problem.body))

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, problem: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path}"
        found = Refused(f"{where}: {problem.detail}", status=problem.status_code)
        found.headers = dict(problem.headers or {})
        return await refuse(request, found)

    names = frozenset(ROUTES)
    return Guard(app, doors, token, hosts, names, root_path.rstrip("/"))


class Desk:
    """Takes requests, has them answered, and knows whether the model is well."""

    def __init__(self, models: Sequence[Served], doors: Doors) -> None:
        self._models = {one.name: one for one in models}
        self._doors = doors
        self.problem = ""
        """Why the model cannot answer; empty while it can."""

    def find(self, name: str, *, scores: bool = False) -> Served:
        """The model of a name, which says tokens or scores.

        Raises:
            Refused: if there is none (404), it does the other (400), or none here scores (503).
        """
        if scores and not any(one.engine.scores for one in self._models.values()):
            raise Refused(
                "no reward model (stage: rm) is served here; the models that are predict tokens",
                status=503,
                code="no_reward_model",
            )
        if name not in self._models:
            known = ", ".join(self._models)
            raise Refused(
                f"there is no model {name!r} here; there are: {known}",
                status=404,
                param="model",
                code="model_not_found",
            )
        found = self._models[name]
        if found.engine.scores != scores:
            raise Refused(
                f"{name} is a reward model: it scores answers (/v1/score) and writes none"
                if found.engine.scores
                else f"{name} predicts tokens and scores no answers",
                param="model",
                code="wrong_kind_of_model",
            )
        return found

    async def serve(
        self,
        request: Request,
        num_answers: int,
        is_stream: bool,
        ask: Callable[[], Asked],
        write: Callable[[Asked], Writes],
    ) -> Response:
        """The reply to one request, whole or as a stream; a client that goes ends it.

        Args:
            request: of the client.
            num_answers: that it wants.
            is_stream: whether they are told as they come.
            ask: makes the generator's requests, on another thread.
            write: makes what writes the reply.
        """
        until = asyncio.get_running_loop().time() + self._doors.limits.deadline_s

        async def begin() -> AsyncGenerator[Any, None]:
            leave = await self._doors.enter(num_answers, until)
            try:
                asked = await _by(until, asyncio.to_thread(ask))
                submit = asked.reading.engine.generator.submit
                news = self._told(follow(asked, submit, until=until, leave=leave), asked)
                writer = write(asked)
                async with aclosing(news):
                    # what fails before the first token has a status of its own
                    first = await anext(news, None)
                    every = _chained(first, news)
                    if not is_stream:
                        yield await writer.whole(every)
                        return
                    try:
                        async for event in writer.events(every):
                            yield event
                    except Refused as problem:
                        yield writer.failure(problem)
            finally:
                leave()

        reply = begin()
        try:
            first = await _unless_gone(request, anext(reply))
        except BaseException:
            await reply.aclose()
            raise
        if is_stream:
            return EventStream(first, reply, self._doors.limits.deadline_s)
        await reply.aclose()
        return Response(written(first), media_type="application/json")

    async def measure(
        self, request: Request, work: Callable[[Callable[[], bool]], tuple[Result, int]]
    ) -> tuple[Result, int]:
        """What work on another thread gives, and of how many tokens.

        It is told when the client goes, or the deadline comes.
        """
        until = asyncio.get_running_loop().time() + self._doors.limits.deadline_s
        is_over = threading.Event()

        async def begin() -> tuple[Result, int]:
            leave = await self._doors.enter(1, until)
            try:
                with self._telling():
                    return await _by(until, asyncio.to_thread(work, is_over.is_set))
            finally:
                is_over.set()
                leave()

        found = await _unless_gone(request, begin())
        self._doors.tokens["prompt"] += found[1]
        return found

    async def _told(
        self, news: AsyncGenerator[News, None], asked: Asked
    ) -> AsyncGenerator[News, None]:
        """The same news; tokens are counted."""
        try:
            with self._telling():
                async with aclosing(news):
                    async for one in news:
                        yield one
        finally:
            self._doors.tokens["prompt"] += asked.count.prompt
            self._doors.tokens["answer"] += asked.count.answer

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong with the model becomes a refusal, and is what `/health` tells."""
        try:
            yield
            self.problem = ""
        except Refused:
            raise
        except Exception as problem:
            is_told = isinstance(problem, LuthierError)
            self.problem = str(problem) if is_told else type(problem).__name__
            console.error(f"an answer failed: {type(problem).__name__}: {problem}")
            said = str(problem) if is_told else "the model failed; the server's log says more"
            raise Refused(said, status=500, code="model_error") from problem


class EventStream(Response):
    """Server-sent events; ends when the client goes, or takes one too slowly."""

    media_type = "text/event-stream"

    def __init__(self, first: str, rest: AsyncGenerator[Any, None], send_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest, self._send_s = first, rest, send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}

        async def put(event: str, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": event.encode(), "more_body": more}
            await within(self._send_s, _sent(send, message))

        async def tell() -> None:
            await send(start)
            await put(self._first)
            async for event in self._rest:
                await put(event)
            await put("", more=False)

        try:
            with suppress(TimeoutError, OSError):
                await _until_gone(receive, tell())
        finally:
            await self._rest.aclose()


async def _chained(first: News | None, rest: AsyncIterator[News]) -> AsyncIterator[News]:
    if first is not None:
        yield first
    async for one in rest:
        yield one


async def _unless_gone(request: Request, wanted: Awaitable[Result]) -> Result:
    """What is wanted, unless the client goes before it is there; then nobody reads the reply."""
    found: list[Result] = []

    async def want() -> None:
        found.append(await wanted)

    await _until_gone(request.receive, want())
    if not found:
        raise Refused("the client has gone", status=499, code="client_gone")
    return found[0]


async def _until_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Works until the work is done or the client has gone."""

    async def wait_for_end() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(wait_for_end())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not tasks[0].cancelled():
        tasks[0].result()


async def _sent(send: Send, message: dict[str, Any]) -> None:
    await send(message)


async def _by(until: float, work: Coroutine[Any, Any, Result]) -> Result:
    try:
        return await within(until - asyncio.get_running_loop().time(), work)
    except TimeoutError:
        raise Refused("the deadline of the request has come", status=504, code="deadline") from None


def _tells_usage(form: Sampled) -> bool:
    return form.stream_options is not None and form.stream_options.include_usage


def _model(one: Served) -> dict[str, Any]:
    model = Model(id=one.name, object="model", created=one.created, owned_by="luthier")
    return model.model_dump()
