"""OpenAI's newer form by its own client: text, thoughts, tools, what was said before, all events"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs luthier[api]")
pytest.importorskip("fastapi", reason="needs luthier[api]")

import openai

from luthier.records import Message
from luthier.serving.engine import Engine
from luthier.serving.forms import User
from luthier.serving.problems import Refused
from luthier.serving.responses import Kept
from tests.serving.served import GREEDY, make_engine, serving
from tests.serving.test_api import PARAMETERS

TOOL = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(max_position_embeddings=4096)


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Any]:
    with (
        serving(engine) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture
def respond(client: Any):
    def ask(given: Any = "Who are you?", **fields: Any) -> Any:
        return client.responses.create(model="tiny", input=given, **fields)

    return ask


def said_by(engine: Engine, *messages: Message, system: str | None = None) -> str:
    return "".join(engine.stream(messages, system=system, generating=GREEDY))


def test_a_response_is_what_the_terminal_says(respond, engine: Engine) -> None:
    reply = respond(instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=16)

    expected = said_by(engine, Message("user", "Who are you?"), system="Be brief.")
    assert reply.output_text == expected
    assert (reply.object, reply.status, reply.model) == ("response", "incomplete", "tiny")
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert (reply.instructions, reply.metadata) == ("Be brief.", {"a": "b"})
    assert reply.usage.output_tokens == 16
    assert reply.usage.total_tokens == reply.usage.input_tokens + 16


def test_messages_are_read_as_those_of_a_chat(respond, client) -> None:
    talk = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Who are you?"}]},
        {"role": "assistant", "content": "A bow."},
        {"role": "user", "content": "Oh?"},
    ]
    plain = [talk[0], {"role": "user", "content": "Who are you?"}, *talk[2:]]

    reply = respond(talk, temperature=0)

    chat = client.chat.completions.create(model="tiny", messages=plain, temperature=0)
    assert reply.output_text == chat.choices[0].message.content
    assert reply.usage.input_tokens == chat.usage.prompt_tokens


def test_a_response_goes_on_from_the_one_before(respond, engine: Engine) -> None:
    first = respond(instructions="Be brief.")
    second = respond("Oh?", previous_response_id=first.id)
    third = respond("Really?", previous_response_id=second.id)

    talk = [
        Message("user", "Who are you?"),
        Message("assistant", first.output_text),
        Message("user", "Oh?"),
    ]
    # instructions hold for one response
    assert second.output_text == said_by(engine, *talk)
    assert second.previous_response_id == first.id
    talk += [Message("assistant", second.output_text), Message("user", "Really?")]
    assert third.output_text == said_by(engine, *talk)


def test_a_response_that_is_not_stored_is_not_gone_on_from(respond) -> None:
    reply = respond(store=False)

    with pytest.raises(openai.NotFoundError) as told:
        respond("Oh?", previous_response_id=reply.id)
    assert told.value.code == "previous_response_not_found"


def test_the_oldest_responses_are_forgotten() -> None:
    kept = Kept(most=2, most_bytes=1000)
    talk = [User(role="user", content="x" * 100)]
    for name in ("a", "b"):
        kept.keep(name, talk)
    kept.find("a")
    kept.keep("c", talk)

    assert kept.find("a") == kept.find("c") == talk
    with pytest.raises(Refused, match="no response 'b'"):
        kept.find("b")
    kept.keep("d", talk * 7)
    with pytest.raises(Refused):
        kept.find("c")
    assert kept.find("d")
    kept.keep("e", talk * 20)
    for name in "ade":
        with pytest.raises(Refused):
            kept.find(name)


def test_text_is_streamed_with_all_its_events(respond) -> None:
    events = list(respond(stream=True, max_output_tokens=6))

    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    num_deltas = kinds.count("output_text.delta")
    assert kinds[4:] == ["output_text.delta"] * num_deltas + [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert num_deltas > 2
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type.endswith("text.delta"))
    last = events[-1].response
    assert text == last.output_text == respond(max_output_tokens=6).output_text
    assert last.usage.output_tokens == 6


def test_a_call_is_streamed_as_a_call_and_its_reply_is_read(respond) -> None:
    fields = {"tools": [TOOL], "max_output_tokens": 120}
    events = list(respond(stream=True, tool_choice="required", **fields))

    kinds = [event.type.removeprefix("response.") for event in events]
    assert "output_text.delta" not in kinds
    pieces = [event.delta for event in events if event.type.endswith("arguments.delta")]
    (done,) = [event for event in events if event.type.endswith("arguments.done")]
    assert len(pieces) > 4
    assert "".join(pieces) == done.arguments
    reply = events[-1].response
    (call,) = reply.output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    assert set(json.loads(call.arguments)) == {"city", "days"}
    named = respond(tool_choice={"type": "function", "name": "weather"}, **fields).output[0]
    assert named.arguments == call.arguments

    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    after = respond([answer], previous_response_id=reply.id, tools=[TOOL])
    whole = respond(
        [{"role": "user", "content": "Who are you?"}, call.model_dump(), answer], tools=[TOOL]
    )
    assert after.output_text == whole.output_text
    assert after.usage.input_tokens == whole.usage.input_tokens


def test_json_of_a_schema_is_answered(client, respond) -> None:
    wanted = {"type": "json_schema", "name": "x", "schema": PARAMETERS, "strict": True}

    reply = respond(text={"format": wanted}, max_output_tokens=80)

    assert set(json.loads(reply.output_text)) == {"city", "days"}
    assert reply.status == "completed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"background": True}, "background"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"extra_body": {"stop": "x"}}, "stop"),
    ],
)
def test_what_is_not_done_is_refused_by_its_name(respond, fields: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        respond(**fields)

    assert told.value.param == param


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
def test_media_are_refused_and_not_fetched(respond, kind: str) -> None:
    part = {"type": kind, "image_url": "file:///etc/passwd"}

    with pytest.raises(openai.BadRequestError, match="only text is"):
        respond([{"role": "user", "content": [part]}])
