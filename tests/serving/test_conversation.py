from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("pydantic")

from luthier.data.catalog import FORMATS, Reading
from luthier.data.encode import Encoder, EncodingOptions
from luthier.records import Message, Token
from luthier.serving.conversation import _REQUEST, read_conversation, read_items
from luthier.serving.engine import Engine
from luthier.serving.forms import Assistant, ChatForm, ResponseForm, System, ToolReply, User
from luthier.serving.problems import Refused
from luthier.stages.conversing import find_tool_turns
from luthier.templates.fit import fit_tokenizer
from luthier.templates.jinja import write_chat_template
from luthier.templates.template import TEMPLATES
from tests import tiny
from tests.serving.served import GREEDY

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells it.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "x"}},
            },
        },
    }
]
CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Ulm"}'},
}
TALKS = {
    "one turn": [{"role": "user", "content": "Who are you?"}],
    "system and turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A bow."},
        {"role": "user", "content": "täglich 歌 \n"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
    ],
}


def make(name: str) -> Engine:
    """An engine without weights, its tokenizer fitted as a run fits one."""
    template = TEMPLATES.get(name)
    tokenizer = tiny.make_tokenizer()
    slots = (template.prefix, template.system, template.user, template.assistant)
    every = [part for each in (*slots, template.function, template.observation) for part in each]
    wanted = [part.text for part in every if isinstance(part, Token)]
    tokenizer.add_tokens([*wanted, *template.stop_words], special_tokens=True)
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    fitted = fit_tokenizer(tokenizer, template)
    return Engine(None, tokenizer, template, tuple(fitted.stop_token_ids), GREEDY)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", TEMPLATES.names())
def test_a_client_sends_the_tokens_of_training_and_of_the_saved_chat_template(name, talk) -> None:
    engine = make(name)
    template, tokenizer, messages = engine.template, engine.tokenizer, TALKS[talk]
    tools = TOOLS if talk == "tools" else []
    given = {"model": "x", "messages": messages, "tools": tools}
    form = ChatForm.model_validate(given)
    options = EncodingOptions(sys.maxsize, mask_history=True)
    encoder = Encoder(tokenizer, template, options)
    row = {"messages": [*messages, {"role": "assistant", "content": "Yes."}]}
    row |= {"tools": tools} if tools else {}
    reading = Reading(_REQUEST, tool_turns=find_tool_turns(template))
    trained = FORMATS.get("openai")(row, reading, None)
    (learned,) = encoder.learn([trained])
    (asked,) = encoder.ask([trained])

    sent = engine.encode(read_conversation(form.messages, form.tools, template))

    assert sent == [*asked[0].input_ids]
    assert sent == [*learned[0].input_ids][: len(sent)]
    tokenizer.chat_template = write_chat_template(template)
    for message in (copied := json.loads(json.dumps(messages))):
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        message["content"] = message["content"] or ""
    shown = tokenizer.apply_chat_template(
        copied, tools=tools or None, add_generation_prompt=True, tokenize=False
    )
    assert sent == tokenizer(shown, add_special_tokens=False)["input_ids"]


def test_messages_of_one_role_in_a_row_are_one() -> None:
    messages = [
        System(role="system", content="Be brief."),
        System(role="developer", content="Be kind."),
        User(role="user", content="a"),
        User(role="user", content=[{"type": "text", "text": "b"}]),
    ]

    read = read_conversation(messages, [], TEMPLATES.get("qwen"))

    assert read.system == "Be brief.\n\nBe kind."
    assert read.messages == (Message("user", "a\n\nb"),)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([System(role="system", content="x")], "last message"),
        ([User(role="user", content="x"), Assistant(role="assistant", content="y")], "last"),
        ([ToolReply(role="tool", content="x", tool_call_id="1")], "no call"),
        (
            [
                User(role="user", content="x"),
                Assistant(role="assistant", content="y"),
                System(role="system", content="z"),
                User(role="user", content="x"),
            ],
            "may only come first",
        ),
        ([User(role="user", content=" ")], "content"),
        (
            [
                User(role="user", content="x"),
                Assistant.model_validate({"role": "assistant", "tool_calls": [CALL]}),
                User(role="user", content="x"),
            ],
            "no reply",
        ),
    ],
)
def test_messages_out_of_order_are_refused(messages, said: str) -> None:
    with pytest.raises(Refused, match=said) as told:
        read_conversation(messages, [], TEMPLATES.get("qwen"))

    assert told.value.param.startswith("messages")


def test_a_thought_that_comes_back_stands_before_its_answer() -> None:
    messages = [
        User(role="user", content="x"),
        Assistant(role="assistant", content="y", reasoning_content="hm"),
        User(role="user", content="z"),
    ]

    read = read_conversation(messages, [], TEMPLATES.get("qwen3"))

    assert read.messages[1].content == "<think>\nhm\n</think>\n\ny"


def test_items_of_a_response_are_messages() -> None:
    form = ResponseForm.model_validate(
        {
            "model": "x",
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                {
                    "type": "reasoning",
                    "summary": [],
                    "content": [{"type": "reasoning_text", "text": "hm"}],
                },
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Moment.", "annotations": []}],
                },
                {
                    "type": "function_call",
                    "call_id": "1",
                    "name": "weather",
                    "arguments": '{"city": "Ulm"}',
                },
                {"type": "function_call_output", "call_id": "1", "output": "sun"},
            ],
        }
    )

    system, question, answer, reply = read_items(form.instructions, form.input)

    assert system == System(role="system", content="Be brief.")
    assert isinstance(question, User)
    assert answer == Assistant.model_validate(
        {
            "role": "assistant",
            "content": "Moment.",
            "tool_calls": [CALL],
            "reasoning_content": "hm",
        }
    )
    assert reply == ToolReply(role="tool", content="sun", tool_call_id="1")
