from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("openai", reason="needs luthier[api]")
pytest.importorskip("fastapi", reason="needs luthier[api]")

import openai

from luthier.records import Conversation, Message
from luthier.serving.engine import Engine
from tests.serving.served import GREEDY, make_engine, serving

ASKED = [{"role": "user", "content": "Who are you?"}]
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": PARAMETERS},
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(max_position_embeddings=4096)


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with serving(engine) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def chat(client):
    def ask(messages=ASKED, **fields):
        return client.chat.completions.create(model="tiny", messages=messages, **fields)

    return ask


def said_by(engine: Engine, *messages: Message, **options) -> str:
    """What the terminal's chat says to the same."""
    changed = GREEDY.model_copy(update=options)
    return "".join(engine.stream(messages, generating=changed))


def text_of(stream) -> str:
    return "".join(one.choices[0].delta.content or "" for one in stream if one.choices)


# --- models


def test_models_are_listed_and_found_by_name(client) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "luthier"
    with pytest.raises(openai.NotFoundError) as told:
        client.models.retrieve("huge")
    assert told.value.code == "model_not_found"


# --- chat: what is said


def test_an_answer_is_what_the_terminal_says(chat, engine: Engine) -> None:
    reply = chat()

    (choice,) = reply.choices
    assert choice.message.content == said_by(engine, Message("user", "Who are you?"))
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert reply.object == "chat.completion"
    assert reply.model == "tiny"
    assert reply.usage.completion_tokens == GREEDY.max_new_tokens
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_the_prompt_has_the_tokens_of_training(chat, engine: Engine) -> None:
    asked = Conversation((Message("user", "Who are you?"),), system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, *ASKED]

    assert chat(messages).usage.prompt_tokens == len(engine.encode(asked))


def test_a_stream_says_the_same_in_pieces(chat) -> None:
    pieces = list(chat(stream=True))

    assert text_of(pieces) == chat().choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert len({piece.id for piece in pieces}) == 1
    assert all(piece.object == "chat.completion.chunk" for piece in pieces)
    assert [piece.choices[0].finish_reason for piece in pieces][-2:] == [None, "length"]
    assert len(pieces) > 5
    assert pieces[0].usage is None


def test_a_stream_ends_with_the_usage_where_asked(chat) -> None:
    *pieces, last = chat(stream=True, stream_options={"include_usage": True})

    assert last.choices == []
    assert last.usage == chat().usage
    assert all(piece.usage is None for piece in pieces)


def test_system_and_developer_are_one_role(chat) -> None:
    told = [[{"role": role, "content": "Sing."}, *ASKED] for role in ("system", "developer")]

    first, second = (chat(messages).choices[0].message.content for messages in told)

    assert first == second != chat().choices[0].message.content


def test_content_may_come_in_parts(chat) -> None:
    parts = [{"type": "text", "text": "Who are"}, {"type": "text", "text": " you?"}]

    reply = chat([{"role": "user", "content": parts}])

    assert reply.choices[0].message == chat().choices[0].message


def test_earlier_turns_are_read(chat, engine: Engine) -> None:
    talk = [*ASKED, {"role": "assistant", "content": "A bow."}, {"role": "user", "content": "Oh?"}]

    expected = said_by(
        engine,
        Message("user", "Who are you?"),
        Message("assistant", "A bow."),
        Message("user", "Oh?"),
    )

    assert chat(talk).choices[0].message.content == expected


def test_an_answer_goes_back_as_the_client_holds_it(chat) -> None:
    first = chat().choices[0].message
    talk = [*ASKED, first.model_dump(), {"role": "user", "content": "Oh?"}]
    plain = [*ASKED, {"role": "assistant", "content": first.content}, talk[-1]]

    assert chat(talk).choices[0].message == chat(plain).choices[0].message


# --- chat: how tokens are chosen


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_answers_are_as_long_as_asked(chat, field: str) -> None:
    reply = chat(**{field: 3})

    assert reply.usage.completion_tokens == 3
    assert reply.choices[0].finish_reason == "length"


def test_several_answers_have_seeds_of_their_own(chat) -> None:
    reply = chat(n=3, temperature=1.5, top_p=1, seed=4)

    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert reply.usage.completion_tokens == 3 * GREEDY.max_new_tokens
    assert reply.usage.prompt_tokens == chat().usage.prompt_tokens
    again = chat(n=3, temperature=1.5, top_p=1, seed=4)
    assert [choice.message.content for choice in again.choices] == texts
    assert chat(temperature=1.5, top_p=1, seed=5).choices[0].message.content == texts[1]


def test_several_answers_are_streamed_by_their_numbers(chat) -> None:
    texts = ["", ""]
    for piece in chat(n=2, temperature=1.5, top_p=1, seed=4, stream=True):
        choice = piece.choices[0]
        texts[choice.index] += choice.delta.content or ""

    whole = chat(n=2, temperature=1.5, top_p=1, seed=4)
    assert [choice.message.content for choice in whole.choices] == texts


def test_temperature_nought_takes_the_likeliest(chat) -> None:
    assert chat(temperature=0).choices[0].message == chat(temperature=0, seed=9).choices[0].message
    assert chat(temperature=0).choices[0].message == chat().choices[0].message
    assert chat(top_p=0).choices[0].message == chat().choices[0].message


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_shown(chat, is_stream: bool) -> None:
    whole = chat().choices[0].message.content
    stop = whole[5:8]
    expected = whole[: whole.index(stop)]

    if is_stream:
        pieces = list(chat(stop=stop, stream=True))
        said, reason = text_of(pieces), pieces[-1].choices[0].finish_reason
    else:
        choice = chat(stop=["never said", stop]).choices[0]
        said, reason = choice.message.content, choice.finish_reason

    assert (said, reason) == (expected, "stop")


def test_the_stop_token_ends_an_answer(engine: Engine) -> None:
    from dataclasses import replace

    from luthier.generating.request import Request, Sampling

    prompt = engine.encode(Conversation((Message("user", "Who are you?"),)))
    answering = engine.generator.submit(Request(prompt, Sampling(max_new_tokens=8)))
    stop = answering.answer.token_ids[4]
    with serving(replace(engine, stop_token_ids=(stop,))) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        reply = client.chat.completions.create(model="tiny", messages=ASKED)

    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens <= 5


def test_a_bias_forbids_or_forces_a_token(chat, engine: Engine) -> None:
    token = engine.tokenizer.convert_tokens_to_ids("x")
    first = chat(max_tokens=1, logprobs=True).choices[0].logprobs.content[0].token
    first_id = engine.tokenizer.convert_tokens_to_ids(engine.tokenizer.tokenize(first))[0]

    assert chat(max_tokens=4, logit_bias={str(token): 100}).choices[0].message.content == "xxxx"
    forbidden = chat(max_tokens=1, logit_bias={str(first_id): -100}).choices[0].message.content
    assert forbidden != first


def test_penalties_are_taken_from_logits_and_nought_is_neutral(chat, engine: Engine) -> None:
    token = str(engine.tokenizer.convert_tokens_to_ids("x"))
    neutral = chat(presence_penalty=0, frequency_penalty=0)

    assert neutral.choices[0].message == chat().choices[0].message
    # of two tokens with equal bias the one that was said loses its advantage
    forced = {token: 30.0}
    said = chat(max_tokens=8, logit_bias=forced).choices[0].message.content
    fined = chat(max_tokens=8, logit_bias=forced, frequency_penalty=2).choices[0].message.content
    assert said == "x" * 8
    assert fined.count("x") <= said.count("x")


def test_a_frequency_penalty_counts_how_often(client, engine: Engine) -> None:
    def first_other(**fields) -> int:
        text = (
            client.completions.create(
                model="tiny",
                prompt="The",
                max_tokens=12,
                logit_bias={str(x): 6, str(y): 5},
                **fields,
            )
            .choices[0]
            .text
        )
        return next((at for at, letter in enumerate(text) if letter != text[0]), 12)

    x, y = engine.tokenizer.convert_tokens_to_ids(["x", "y"])

    assert first_other(frequency_penalty=2) <= first_other()


def test_log_probabilities_are_those_of_the_model(chat, engine: Engine) -> None:
    choice = chat(logprobs=True, top_logprobs=3, max_tokens=4).choices[0]
    prompt = engine.encode(Conversation((Message("user", "Who are you?"),)))

    told = choice.logprobs.content
    with torch.no_grad():
        logits = engine.model(torch.tensor([prompt])).logits[0, -1]
    logps = torch.log_softmax(logits.float(), dim=-1)

    assert len(told) == 4
    assert all(len(one.top_logprobs) == 3 for one in told)
    assert math.isclose(told[0].logprob, float(logps.max()), abs_tol=1e-4)
    assert told[0].top_logprobs[0].logprob == told[0].logprob
    assert bytes(told[0].bytes).decode() == told[0].token
    tops = [one.logprob for one in told[0].top_logprobs]
    assert tops == sorted(tops, reverse=True)


def test_log_probabilities_are_streamed(chat) -> None:
    pieces = chat(logprobs=True, max_tokens=6, stream=True)
    told = [one for piece in pieces if (lp := piece.choices[0].logprobs) for one in lp.content]

    assert told == chat(logprobs=True, max_tokens=6).choices[0].logprobs.content


# --- chat: forms


def test_json_of_a_schema_is_answered(chat) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}}

    choice = chat(response_format=wanted, max_tokens=80).choices[0]

    found = json.loads(choice.message.content)
    assert set(found) == {"city", "days"}
    assert choice.finish_reason == "stop"


def test_a_json_object_is_answered(chat) -> None:
    content = chat(response_format={"type": "json_object"}, max_tokens=200, seed=1, temperature=1)

    text = content.choices[0].message.content
    assert text.startswith("{")
    if content.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_schema_that_cannot_be_kept_is_refused(chat) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "banana"}}}

    with pytest.raises(openai.BadRequestError) as told:
        chat(response_format=wanted)

    assert told.value.param == "response_format"


# --- chat: tools


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_tool_can_be_forced(chat, choice) -> None:
    reply = chat(tools=[WEATHER], tool_choice=choice, max_tokens=120).choices[0]

    (call,) = reply.message.tool_calls
    assert reply.finish_reason == "tool_calls"
    assert reply.message.content is None
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    assert call.id.startswith("call")


def test_calls_are_streamed_name_first_then_arguments(chat) -> None:
    fields = {"tools": [CLOCK, WEATHER], "max_tokens": 120}
    named = {"type": "function", "function": {"name": "weather"}}
    pieces = [
        call
        for piece in chat(stream=True, tool_choice=named, **fields)
        for call in piece.choices[0].delta.tool_calls or []
    ]

    whole = chat(tool_choice=named, **fields).choices[0].message.tool_calls[0]
    assert pieces[0].function.name == "weather"
    assert pieces[0].id
    assert pieces[0].type == "function"
    assert all(piece.function.name is None and piece.id is None for piece in pieces[1:])
    assert len(pieces) > 4
    assert "".join(one.function.arguments for one in pieces) == whole.function.arguments


def test_tools_change_the_prompt_unless_none_may_be_called(chat) -> None:
    plain = chat().usage.prompt_tokens

    assert chat(tools=[WEATHER]).usage.prompt_tokens > plain
    assert chat(tools=[WEATHER], tool_choice="auto").choices[0].message.content is not None
    assert chat(tools=[WEATHER], tool_choice="none").usage.prompt_tokens == plain


def call(name: str, arguments: str, number: int = 1) -> dict:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call-{number}", "type": "function", "function": function}


def reply(content: str, number: int = 1) -> dict:
    return {"role": "tool", "tool_call_id": f"call-{number}", "content": content}


def test_replies_of_parallel_calls_are_read_in_the_order_of_the_calls(chat, engine) -> None:
    calls = [call("weather", '{"city": "Ulm", "days": 1}'), call("clock", "{}", 2)]
    talk = [*ASKED, {"role": "assistant", "content": None, "tool_calls": calls}]
    replies = [reply("sun"), reply("noon", 2)]

    first = chat([*talk, *replies], tools=[WEATHER, CLOCK], max_tokens=4)
    second = chat([*talk, *replies[::-1]], tools=[WEATHER, CLOCK], max_tokens=4)

    written = json.dumps(
        [
            {"name": "weather", "arguments": {"city": "Ulm", "days": 1}},
            {"name": "clock", "arguments": {}},
        ]
    )
    asked = Conversation(
        (
            Message("user", "Who are you?"),
            Message("function", written),
            Message("observation", "sun\n</tool_response>\n<tool_response>\nnoon"),
        ),
        tools=json.dumps([WEATHER, CLOCK]),
    )
    assert first.usage.prompt_tokens == len(engine.encode(asked))
    assert first.choices[0].message == second.choices[0].message


# --- completions


def test_plain_completions_go_on_with_a_text(client, engine: Engine) -> None:
    ids = engine.tokenizer("The luthier")["input_ids"]

    of_text = client.completions.create(model="tiny", prompt="The luthier", max_tokens=5)
    of_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=5)

    assert of_text.object == "text_completion"
    assert of_text.choices[0].text == of_ids.choices[0].text != ""
    assert of_text.usage.prompt_tokens == len(ids)
    assert of_text.choices[0].finish_reason == "length"


def test_several_prompts_are_completed_in_their_order(client) -> None:
    prompts = ["The luthier", "A string"]

    both = client.completions.create(model="tiny", prompt=prompts, n=2, max_tokens=5)

    alone = [
        client.completions.create(model="tiny", prompt=one, max_tokens=5).choices[0].text
        for one in prompts
    ]
    assert [one.text for one in both.choices] == [alone[0]] * 2 + [alone[1]] * 2
    assert [one.index for one in both.choices] == [0, 1, 2, 3]


def test_completions_are_streamed(client) -> None:
    asked = {"model": "tiny", "prompt": "The luthier", "max_tokens": 6, "logprobs": 2}
    pieces = list(client.completions.create(**asked, stream=True))

    whole = client.completions.create(**asked).choices[0]
    assert "".join(piece.choices[0].text for piece in pieces) == whole.text
    assert pieces[-1].choices[0].finish_reason == "length"
    told = [
        number
        for piece in pieces
        if piece.choices[0].logprobs
        for number in piece.choices[0].logprobs.token_logprobs
    ]
    assert told == whole.logprobs.token_logprobs


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"12": 101}}, "logit_bias.12"),
        ({"logit_bias": {"4000000": 1}}, "logit_bias"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [*ASKED, reply("x")]}, "messages[1].tool_call_id"),
        ({"seed": 1.5}, "seed"),
        ({"user": "somebody"}, "user"),
        ({"store": True}, "store"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"extra_body": {"top_k": 4}}, "top_k"),
    ],
)
def test_what_is_not_done_is_refused_by_its_name(chat, fields: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        chat(**fields)

    assert told.value.param == param
    assert told.value.type == "invalid_request_error"
    assert param.partition("[")[0].partition(".")[0] in str(told.value)


def test_what_asks_for_nothing_is_accepted(chat) -> None:
    quiet = {
        "store": False,
        "modalities": ["text"],
        "service_tier": "auto",
        "user": None,
        "audio": None,
        "stop": None,
        "response_format": {"type": "text"},
    }

    assert chat(**quiet).choices[0].message == chat().choices[0].message


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_media_are_refused_and_not_fetched(chat, kind: str) -> None:
    part = {"type": kind, kind: {"url": "file:///etc/passwd"}}

    with pytest.raises(openai.BadRequestError, match="only text is") as told:
        chat([{"role": "user", "content": [part]}])

    assert told.value.param == "messages[0].content[0]"


def test_a_prompt_that_overflows_is_refused_with_both_numbers(chat) -> None:
    with pytest.raises(openai.BadRequestError, match=r"prompt has [\d,]+ tokens.* reads 4,096"):
        chat([{"role": "user", "content": "sing " * 6000}])
    with pytest.raises(openai.BadRequestError, match="4,096") as told:
        chat(max_tokens=4090)
    assert told.value.code == "context_length_exceeded"


def test_an_unknown_model_is_refused(client) -> None:
    with pytest.raises(openai.NotFoundError) as told:
        client.chat.completions.create(model="gpt-9", messages=ASKED)

    assert told.value.param == "model"
    assert told.value.type == "not_found_error"
