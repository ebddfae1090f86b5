import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.catalog import (
    FORMATS,
    OPENAI_TAGS,
    Columns,
    DatasetDescription,
    Reading,
    Tags,
    ToolTurns,
    load_catalog,
)
from luthier.data.check import RowError
from luthier.data.formats.detect import detect_format
from luthier.errors import DataError
from luthier.records import Conversation


def read(row: Any, formatting: str, answers: bool = True, **entry: Any) -> Conversation:
    catalog = load_catalog({"user": {"file_name": "x", "formatting": formatting, **entry}})
    reading = Reading(catalog.describe("user"), needs_answer=answers, tool_turns=ToolTurns("|"))
    return FORMATS.get(formatting)(row, reading, None)


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def test_alpaca_joins_prompt_and_query_and_puts_history_first():
    row = {
        "instruction": "one",
        "input": "two",
        "output": "three",
        "history": [["a", "b"], ["c", "d"]],
        "system": "be kind",
    }

    found = read(row, "alpaca", columns={"history": "history", "system": "system"})

    assert found.system == "be kind"
    assert turns(found) == [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "one\ntwo"),
        ("assistant", "three"),
    ]


@pytest.mark.parametrize(
    "row", [{"instruction": "a"}, {"input": "a"}, {"instruction": "a", "input": None}]
)
def test_alpaca_leaves_empty_parts_out(row):
    assert turns(read(row | {"output": "b"}, "alpaca"))[0] == ("user", "a")


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"instruction": "a"}, "output", "missing"),
        ({"instruction": "a", "output": None}, "output", "null"),
        ({"instruction": "a", "output": 3}, "output", "a number"),
        ({"instruction": "a", "output": ["b"]}, "output", "a list"),
        ({"instruction": "a", "output": ""}, "output", "empty"),
        ({"instruction": "", "output": "b"}, "instruction", "empty"),
        ({"output": "b"}, "instruction", "missing"),
        ({"instruction": 1, "output": "b"}, "instruction", "a number"),
        ({"instruction": "a", "output": "\udcff"}, "output", "not UTF-8"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "history[0]", "no pair"),
        ({"instruction": "a", "output": "b", "history": [["c", 1]]}, "history[0]", "a number"),
        ({"instruction": "a", "output": "b", "tools": "{"}, "tools", "no JSON list"),
        ({"instruction": "a", "output": "b", "tools": [{"title": "f"}]}, "tools", "wrong shape"),
        (
            {"instruction": "a", "output": "b", "tools": '[{"name": "f", "parameters": ["a"]}]'},
            "tools",
            "wrong shape",
        ),
    ],
)
def test_a_wrong_alpaca_row_names_field_and_reason(row, field, reason):
    with pytest.raises(RowError) as raised:
        read(row, "alpaca", columns={"history": "history", "tools": "tools"})

    assert raised.value.field == field
    assert reason in raised.value.reason
    assert raised.value.fix


def said(*messages: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"from": role, "value": value} for role, value in messages]


def test_sharegpt_keeps_turns_and_its_first_system_message_wins():
    messages = said(
        ("system", "be kind"),
        ("human", "a"),
        ("function_call", '{"name": "f", "arguments": {}}'),
        ("observation", "found"),
        ("gpt", "b"),
    )

    found = read({"conversations": messages, "sys": "x"}, "sharegpt", columns={"system": "sys"})

    assert found.system == "be kind"
    assert [role for role, _ in turns(found)] == ["user", "function", "observation", "assistant"]


@pytest.mark.parametrize(
    ("messages", "field", "reason"),
    [
        (None, "conversations", "null"),
        ("hello", "conversations", "text where a list"),
        ([], "conversations", "no messages"),
        ([1], "conversations[0]", "a number where an object"),
        (said(("human", "a")), "conversations", "no answer"),
        (said(("gpt", "a"), ("human", "b")), "conversations[0]", "out of order"),
        (said(("human", "a"), ("human", "b")), "conversations[1]", "out of order"),
        (said(("humam", "a"), ("gpt", "b")), "conversations[0].from", "unknown role"),
        (said((["human"], "a"), ("gpt", "b")), "conversations[0].from", "a list"),
        (said(("human", None), ("gpt", "b")), "conversations[0].value", "null"),
        (said(("human", "a"), ("gpt", "")), "conversations[1].value", "empty"),
        (said(("human", "a"), ("system", "b")), "conversations[1]", "in the middle"),
    ],
)
def test_a_wrong_sharegpt_row_names_field_and_reason(messages, field, reason):
    with pytest.raises(RowError) as raised:
        read({"conversations": messages}, "sharegpt")

    assert raised.value.field == field
    assert reason in raised.value.reason


def test_without_the_need_of_an_answer_a_question_is_enough():
    found = read({"conversations": said(("human", "a"))}, "sharegpt", answers=False)

    assert turns(found) == [("user", "a"), ("assistant", "")]


def test_openai_system_text_stays_as_it_is():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

    assert read({"messages": messages}, "openai").system is None
    for role in ("system", "developer"):
        row = {"messages": [{"role": role, "content": "be kind"}, *messages]}
        assert read(row, "openai").system == "be kind"


def test_openai_calls_become_a_function_message_and_results_one_observation():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "tool_call_id": "1", "content": "one"},
            {"role": "tool", "tool_call_id": "2", "content": "two"},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }

    found = read(row, "openai", columns={"tools": "tools"})

    assert json.loads(found.messages[1].content) == [{"name": "f", "arguments": {"x": 1}}] * 2
    assert found.messages[2].content == "one|two"
    assert found.messages[3].content == "b"
    assert json.loads(found.tools or "") == row["tools"]


def chat(formatting: str, *messages: dict[str, Any], reading: Reading | None = None) -> Any:
    """What a format reads of messages with the keys role and content."""
    description = DatasetDescription(
        "user", "file", "x", formatting, columns=Columns(messages="messages"), tags=OPENAI_TAGS
    )
    reading = replace(reading or Reading(description), description=description)
    return FORMATS.get(formatting)({"messages": list(messages)}, reading, None).messages


ASKED = {"role": "user", "content": "a"}
CALLS = [{"function": {"name": "f", "arguments": {"x": 1}}}]
FOUND = {"role": "tool", "content": "3"}
ANSWER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize("formatting", ["openai", "sharegpt"])
@pytest.mark.parametrize(
    "answer",
    [
        {"content": [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "b"}]},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "output_text", "text": "b"}]},
        {"content": "b", "reasoning_content": "hm"},
        {"content": "b", "reasoning": "hm"},
        {"content": "b", "thinking": "hm"},
        {"content": "b", "reasoning": "hm", "reasoning_content": "hm", "thinking": None},
        {"content": "<think>\nhm\n</think>\n\nb", "reasoning_content": "hm"},
    ],
)
def test_thoughts_stand_before_their_answer(formatting, answer):
    found = chat(formatting, ASKED, {"role": "assistant", **answer})

    assert found[1].content == "<think>\nhm\n</think>\n\nb"


@pytest.mark.parametrize("formatting", ["openai", "sharegpt"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"content": None}, ""),
        ({"content": "I look."}, "I look."),
        ({"content": "<think>hm</think>I look."}, "<think>hm</think>I look."),
        ({"content": "I look.", "reasoning": "hm"}, "<think>\nhm\n</think>\n\nI look."),
    ],
)
def test_what_is_said_beside_calls_stays_with_them(formatting, answer, said):
    messages = (ASKED, {"role": "assistant", "tool_calls": CALLS, **answer}, FOUND, ANSWER)

    called = chat(formatting, *messages)[1]
    alone = Reading(DatasetDescription("x", "file", "x"), tool_turns=ToolTurns(takes_text=False))
    shortened = chat(formatting, *messages, reading=alone)[1]

    assert (called.role, called.said) == ("function", said)
    assert json.loads(called.content) == [CALLS[0]["function"]]
    assert shortened.said == said.removesuffix("I look.")
    assert alone.remarks.total() == int(said.endswith("I look."))


def test_a_single_call_under_its_older_name_is_one():
    call = {"name": "f", "arguments": "{}"}
    answer = {"role": "assistant", "content": None, "function_call": call}

    assert chat("openai", ASKED, answer, FOUND, ANSWER)[1].content == (
        '[{"name": "f", "arguments": {}}]'
    )


def test_sharegpt_joins_calls_and_results_that_follow_each_other():
    one, two = '{"name": "f", "arguments": {}}', '[{"name": "g", "arguments": {}}]'
    messages = said(
        ("human", "a"),
        ("function_call", one),
        ("function_call", two),
        ("observation", "3"),
        ("observation", "4"),
        ("gpt", "b"),
    )

    found = read({"conversations": messages}, "sharegpt")

    assert json.loads(found.messages[1].content) == [json.loads(one), *json.loads(two)]
    assert turns(found)[2:] == [("observation", "3|4"), ("assistant", "b")]
    for number, change in ((2, {"value": "I look."}), (4, {"weight": 0.5})):
        wrong = [*messages]
        wrong[number] = wrong[number] | change
        with pytest.raises(RowError, match=rf"^conversations\[{number}\]: "):
            read({"conversations": wrong}, "sharegpt")


def test_a_thought_that_is_no_text_is_counted():
    reading = Reading(DatasetDescription("x", "file", "x"))

    found = chat("openai", ASKED, ANSWER | {"thinking": True}, reading=reading)

    assert found[1].content == "b"
    assert list(reading.remarks) == ["'thinking' of a message is not read: it is no text"]


@pytest.mark.parametrize("tools", ["", " ", "\n", "null", None])
def test_blank_tools_are_none(tools):
    row = {"instruction": "a", "output": "b", "tools": tools}

    assert read(row, "alpaca", columns={"tools": "tools"}).tools is None
    assert read(row | {"tools": []}, "alpaca", columns={"tools": "tools"}).tools == "[]"


@pytest.mark.parametrize(
    ("messages", "field", "reason"),
    [
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "messages[0].content[0]",
            "no text",
        ),
        ([{"role": "user", "content": None}], "messages[0].content", "null"),
        ([{"role": "user", "content": []}], "messages[0].content", "empty"),
        (
            [{"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}],
            "messages[0].tool_calls",
            "no answer",
        ),
        (
            [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "a"},
                {"role": "user", "content": "b"},
            ],
            "messages[2]",
            "out of order",
        ),
        ([{"role": "usr", "content": "a"}], "messages[0].role", "unknown role"),
        (
            [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                },
            ],
            "messages[1].tool_calls[0].arguments",
            "not JSON",
        ),
        (
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "tool", "content": "c"},
            ],
            "messages",
            "no answer",
        ),
    ],
)
def test_a_wrong_openai_row_names_field_and_reason(messages, field, reason):
    with pytest.raises(RowError) as raised:
        read({"messages": messages}, "openai")

    assert raised.value.field == field
    assert reason in raised.value.reason


@pytest.mark.parametrize(
    ("row", "formatting", "column"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca", "instruction"),
        ({"question": "a", "answer": "b"}, "alpaca", "question"),
        ({"conversations": said(("human", "a"), ("gpt", "b"))}, "sharegpt", "conversations"),
        ({"conversations": said(("user", "a"), ("assistant", "b"))}, "sharegpt", "user"),
        ({"messages": [{"role": "user", "content": "a"}]}, "openai", "messages"),
        ({"conversations": [{"role": "user", "content": "a"}]}, "openai", "conversations"),
    ],
)
def test_the_format_is_detected_and_said(row, formatting, column):
    description = load_catalog("ONLINE").describe("x")

    detected, line = detect_format(description, [row])

    assert detected.formatting == formatting
    assert column in line
    reading = Reading(detected, needs_answer=False)
    assert turns(FORMATS.get(formatting)(row, reading, None))[0] == ("user", "a")


@pytest.mark.parametrize("rows", [[], [1], [{"text": "a"}], [{"chosen": "a", "rejected": "b"}]])
def test_rows_like_no_format_are_an_error(rows):
    with pytest.raises(DataError, match="its rows"):
        detect_format(load_catalog("ONLINE").describe("x"), rows)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
WORDS = st.sampled_from(
    ["human", "gpt", "user", "assistant", "tool", "system", "developer", "function_call", "{}"]
)
KEYS = st.sampled_from(
    """instruction input output history system tools conversations messages from value role
    content tool_calls function name arguments type text reasoning_content thinking loss
    function_call""".split()
)
ANY = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)
MESSAGE = st.dictionaries(KEYS, WORDS | ANY, max_size=5)
ROW = st.dictionaries(KEYS, ANY | st.lists(MESSAGE, max_size=5) | st.text(), max_size=6)


@pytest.mark.parametrize("formatting", ["alpaca", "sharegpt", "openai"])
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(row=ROW, answers=st.booleans())
def test_any_row_is_read_or_refused_with_our_own_error(formatting, row, answers):
    columns = {"history": "history", "system": "system", "tools": "tools"}
    try:
        found = read(row, formatting, answers, columns=columns)
    except RowError:
        return

    assert len(found.messages) % 2 == 0
    for number, message in enumerate(found.messages):
        asks = ("user", "observation") if number % 2 == 0 else ("assistant", "function")
        assert message.role in asks
        message.content.encode("utf-8")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b", "label": False},
        {"messages": [{"role": "user", "content": "a"}], "kto_tag": True},
        {"instruction": "a", "output": "b", "label": None},
    ],
)
def test_rows_that_tell_wanted_from_unwanted_answers_are_refused(row):
    description = load_catalog("ONLINE").describe("x")
    name = "kto_tag" if "kto_tag" in row else "label"

    if row[name] is None:
        assert detect_format(description, [row])[0].formatting == "alpaca"
        row = row | {name: "spam"}
        assert detect_format(description, [row])[0].formatting == "alpaca"
    else:
        with pytest.raises(DataError, match=f"'{name}' is true or false, as stage kto"):
            detect_format(description, [row])


@pytest.mark.parametrize("column", ["text", "content"])
def test_texts_where_conversations_are_expected_mention_their_stage(column):
    description = DatasetDescription("user", "file", "rows.json", "alpaca")

    with pytest.raises(DataError, match=r"For plain texts set stage: pt\."):
        detect_format(load_catalog("ONLINE").describe("x"), [{column: "a"}])
    with pytest.raises(RowError, match=r"For plain texts set stage: pt\."):
        FORMATS.get("alpaca")({column: "a"}, Reading(description), None)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(ROW | ANY, max_size=4))
def test_any_rows_are_detected_or_refused(rows):
    with contextlib.suppress(DataError):
        detect_format(load_catalog("ONLINE").describe("x"), rows)


def read_one(row: dict[str, object], formatting: str, **columns: object) -> Conversation:
    given = Columns(**({"messages": "messages"} | columns))  # type: ignore[arg-type]
    tags = OPENAI_TAGS if formatting == "openai" else Tags()
    description = DatasetDescription(
        "user", "file", "rows.json", formatting, columns=given, tags=tags
    )
    return FORMATS.get(formatting)(row, Reading(description), None)


@pytest.mark.parametrize(
    ("marks", "weight"),
    [
        ({}, None),
        ({"train": None, "weight": None}, None),
        ({"train": True}, 1),
        ({"train": False}, 0),
        ({"weight": 0}, 0),
        ({"weight": 0.5}, 0.5),
        ({"train": True, "weight": 0.25}, 0.25),
        ({"train": False, "weight": 1}, 0),
    ],
)
def test_messages_and_rows_say_how_much_they_count(marks, weight):
    said = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"} | marks
    chat = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"} | marks

    of_message = read_one({"messages": list(said)}, "sharegpt").messages[-1]
    of_chat = read_one({"messages": list(chat)}, "openai").messages[-1]
    named = {"train": "train", "weight": "weight"}
    of_row = read_one({"instruction": "a", "output": "b"} | marks, "alpaca", **named)

    assert of_message.weight == of_chat.weight == weight
    assert of_row.weight == (weight if weight != 1 or "weight" in marks else None)


@pytest.mark.parametrize(("loss", "weight"), [(False, 0), (True, 1), (0.5, 0.5), (None, None)])
def test_loss_says_what_train_says(loss, weight):
    assert chat("openai", ASKED, ANSWER | {"loss": loss})[1].weight == weight


@pytest.mark.parametrize(
    "marks", [{"train": "no"}, {"weight": "much"}, {"weight": -1}, {"train": 1}, {"loss": "no"}]
)
def test_a_mark_of_a_message_that_says_nothing_is_a_wrong_row(marks):
    said = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"} | marks

    with pytest.raises(RowError, match=next(iter(marks))):
        read_one({"messages": list(said)}, "sharegpt")


@pytest.mark.parametrize(
    "marks", [{"train": "split-1"}, {"weight": "heavy"}, {"weight": -1}, {"train": 0.5}]
)
def test_a_named_column_that_says_nothing_of_learning_is_a_wrong_row(marks):
    row, named = {"instruction": "a", "output": "b"} | marks, {name: name for name in marks}

    with pytest.raises(RowError, match=next(iter(marks))):
        read_one(row, "alpaca", **named)
    assert read_one(row | dict.fromkeys(marks, ""), "alpaca", **named).weight is None


def test_cells_of_a_csv_say_how_much_a_row_counts():
    row = {"instruction": "a", "output": "b", "train": "FALSE", "weight": "0.5"}

    assert read_one(row, "alpaca", weight="weight").weight == 0.5
    assert read_one(row, "alpaca", weight="weight", train="train").weight == 0


@pytest.mark.parametrize("formatting", ["alpaca", "sharegpt", "openai"])
@pytest.mark.parametrize(
    ("marks", "num_remarks"),
    [
        ({"train": False}, 1),
        ({"weight": 0.5}, 1),
        ({"train": "true", "weight": "3"}, 2),
        ({"train": "split-1", "weight": "heavy"}, 0),
        ({"train": None, "weight": True}, 0),
    ],
)
def test_columns_that_nobody_named_do_not_weigh(formatting, marks, num_remarks):
    said = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"instruction": "a", "output": "b", "conversations": said, "messages": chat} | marks
    tags = OPENAI_TAGS if formatting == "openai" else Tags()
    columns = Columns(messages="messages" if formatting == "openai" else "conversations")
    reading = Reading(DatasetDescription("a", "file", "b", formatting, columns=columns, tags=tags))

    assert FORMATS.get(formatting)(row, reading, None).weight is None

    assert list(reading.remarks.values()) == [1] * num_remarks
    for remark in reading.remarks:
        assert '"columns": {' in remark
