"""What a form asks for -> requests of the generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import TemplateError
from luthier.generating.generator import context_length, new_token_limit
from luthier.generating.request import Request, Sampling
from luthier.records import Conversation
from luthier.serving.answers import PROMPT_END, Asked, Count, Reading
from luthier.serving.conversation import read_conversation
from luthier.serving.engine import Engine
from luthier.serving.forms import (
    ChatForm,
    Chosen,
    CompletionForm,
    ForcedTool,
    Sampled,
    SchemaFormat,
    ScoreForm,
    Tool,
)
from luthier.serving.grammar import Grammar
from luthier.serving.problems import Refused
from luthier.templates.answer_stream import opens_thought


@dataclass(frozen=True)
class Served:
    """A model by its name."""

    name: str
    engine: Engine  # renders and encodes
    adapter: str | None = None  # that answers; None leaves the model as it stands
    created: int = 0  # seconds since 1970


def ask_chat(form: ChatForm, served: Served) -> Asked:
    """The requests of a chat; renders, encodes and checks, so it takes a while.

    Raises:
        Refused: with the field that cannot be done.
    """
    engine = served.engine
    tools = [] if form.tool_choice == "none" else form.tools
    conversation = read_conversation(form.messages, tools, engine.template)
    prompt = encode(engine, conversation)
    ending = str(engine.tokenizer.decode(prompt[-PROMPT_END:]))
    grammar = Grammar.of(
        engine,
        tools=tools,
        forced=_forced(form, tools),
        schema=_schema(form),
        is_thinking=opens_thought(engine.template, ending),
    )
    num_logprobs = (form.top_logprobs or 0) if form.logprobs else None
    limit = form.max_completion_tokens or form.max_tokens
    requests = _requests(
        form,
        served,
        [prompt],
        limit,
        "max_completion_tokens" if form.max_completion_tokens else "max_tokens",
        num_logprobs,
        grammar.allowed if grammar else None,
    )
    names = [tool.function.name for tool in tools]
    reading = Reading(
        engine, reads_calls=bool(tools), tool_names=names, one_call=not form.parallel_tool_calls
    )
    return Asked(reading, requests, Count(len(prompt)))


def ask_completion(form: CompletionForm, served: Served) -> Asked:
    """The requests of plain completions: n of the first prompt, then of the next.

    Raises:
        Refused: with the field that cannot be done.
    """
    engine = served.engine
    prompts = [list(one) for one in _prompts(form, engine)]
    if len(prompts) * form.n > 8:
        raise Refused(f"n: {len(prompts)} prompts with {form.n} answers each; 8 at once", param="n")
    requests = _requests(form, served, prompts, form.max_tokens, "max_tokens", form.logprobs, None)
    return Asked(Reading(engine, reads_thoughts=False), requests, Count(sum(map(len, prompts))))


def read_scored(form: ScoreForm, engine: Engine) -> list[list[int]]:
    """The ids of each conversation or text that is scored, as training shows it.

    Raises:
        Refused: with the one that cannot be written, or is longer than the model reads.
    """
    context = context_length(engine.model)
    found = []
    for messages in form.conversations:
        conversation = read_conversation(messages, form.tools, engine.template, has_answer=True)
        found.append(encode(engine, conversation, is_answered=True))
    for text in () if form.conversations else form.messages:
        ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append(list(ids[: form.max_length]))
    for number, ids in enumerate(found):
        place = f"messages[{number}]" if len(found) > 1 else "messages"
        if not ids:
            raise Refused(f"{place}: the text has no token", param=place)
        if context is not None and len(ids) > context:
            raise Refused(
                f"{place} has {len(ids):,} tokens, and the model reads {context:,}",
                param=place,
                code="context_length_exceeded",
            )
    return found


def encode(engine: Engine, conversation: Conversation, *, is_answered: bool = False) -> list[int]:
    """The ids of a prompt, as training shows it, or of a prompt with its answer."""
    try:
        return engine.encode(conversation, is_answered=is_answered)
    except TemplateError as problem:
        raise Refused(f"messages: {problem}", param="messages") from problem


def _requests(
    form: Sampled,
    served: Served,
    prompts: Sequence[Sequence[int]],
    limit: int | None,
    limit_name: str,
    num_logprobs: int | None,
    allowed: Callable[[], Callable[[Sequence[int]], Any]] | None,
) -> list[Request]:
    engine = served.engine
    vocabulary = engine.model.get_input_embeddings().num_embeddings
    bias = {int(token): value for token, value in form.logit_bias.items()}
    if wrong := [token for token in bias if token >= vocabulary]:
        raise Refused(
            f"logit_bias: the model has {vocabulary:,} tokens, and none is {wrong[0]:,}",
            param="logit_bias",
        )
    requests = []
    for prompt in prompts:
        most = room(engine, len(prompt), limit, limit_name)
        for number in range(form.n):
            requests.append(
                Request(
                    prompt,
                    sampling(
                        form,
                        engine,
                        most,
                        seed=None if form.seed is None else (form.seed + number) % 2**63,
                        presence_penalty=form.presence_penalty,
                        frequency_penalty=form.frequency_penalty,
                        logit_bias=bias,
                    ),
                    engine.stop_token_ids,
                    form.stops,
                    adapter=served.adapter,
                    num_logprobs=num_logprobs,
                    allowed=allowed() if allowed else None,
                )
            )
    return requests


def sampling(
    form: Chosen, engine: Engine, most: int, *, seed: int | None = None, **others: Any
) -> Sampling:
    """How tokens are chosen: as the client says, else as the server was started."""
    given = engine.generating
    draws = given.do_sample if form.temperature is None and form.top_p is None else True
    temperature = given.temperature if form.temperature is None else form.temperature
    top_p = given.top_p if form.top_p is None else form.top_p
    return Sampling(
        do_sample=draws and temperature > 0 and top_p > 0,
        temperature=temperature or 1.0,
        top_p=top_p or 1.0,
        top_k=given.top_k,
        repetition_penalty=given.repetition_penalty,
        seed=seed,
        max_new_tokens=most,
        **others,
    )


def room(engine: Engine, prompt: int, limit: int | None, name: str) -> int:
    """How many tokens an answer to a prompt of so many may have.

    Raises:
        Refused: with both numbers, where prompt and answer do not fit.
    """
    context = context_length(engine.model)
    most = new_token_limit(engine.generating, prompt, engine.model)
    if not prompt:
        raise Refused("the prompt has no token", param="prompt")
    if context is not None and prompt + (limit or 1) > context:
        asked = f" and {limit:,} of the answer ({name})" if limit else ""
        raise Refused(
            f"the prompt has {prompt:,} tokens{asked}, and the model reads {context:,} together",
            param=name if limit and prompt < context else "messages",
            code="context_length_exceeded",
        )
    if limit is None and not most:
        raise Refused(
            f"the prompt has {prompt:,} tokens, and max_length is "
            f"{engine.generating.max_length:,}: say {name}",
            param=name,
            code="context_length_exceeded",
        )
    return limit or most


def _prompts(form: CompletionForm, engine: Engine) -> list[list[int]]:
    given = form.prompt
    if isinstance(given, str):
        given = [given]
    elif isinstance(given[0], int):
        given = [given]
    vocabulary = engine.model.get_input_embeddings().num_embeddings
    prompts = []
    for one in given:
        ids = engine.tokenizer(one)["input_ids"] if isinstance(one, str) else one
        if any(not 0 <= token < vocabulary for token in ids):
            raise Refused(
                f"prompt: tokens are 0 to {vocabulary - 1:,}; one is none of them", param="prompt"
            )
        prompts.append(list(ids))
    return prompts


def _forced(form: ChatForm, tools: Sequence[Tool]) -> list[Tool]:
    """Tools of which one must be called."""
    if isinstance(form.tool_choice, ForcedTool):
        return [one for one in tools if one.function.name == form.tool_choice.function.name]
    return list(tools) if form.tool_choice == "required" else []


def _schema(form: ChatForm) -> Mapping[str, Any] | None:
    """The JSON schema of the text; None where it is free."""
    wanted = form.response_format
    if wanted is None or wanted.type == "text":
        return None
    if isinstance(wanted, SchemaFormat):
        return wanted.json_schema.schema_
    return {"type": "object"}
