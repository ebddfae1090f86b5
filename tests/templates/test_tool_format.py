from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import TemplateError, UnknownName
from luthier.records import Message
from luthier.templates.tool_format import (
    TOOL_FORMATS,
    FunctionCall,
    parse_tools,
    read_calls,
    split_calls,
)
from luthier.templates.tools.json_calls import TODAY
from tests.templates.battery import TOOLS

WORDS = ("<think>\n", "\n</think>\n\n")
TAGS = ("<tool_call>", "</tool_call>")
LETTERS = st.text("abcdefghij", min_size=1, max_size=8).map(lambda text: f"{text}_")
VALUES = st.one_of(
    LETTERS,
    st.integers(-99, 99),
    st.booleans(),
    st.none(),
    st.lists(LETTERS, max_size=2),
    st.dictionaries(LETTERS, LETTERS, max_size=2),
)


def parse_calls(content: str) -> tuple[str, list[FunctionCall]]:
    message = split_calls(Message("function", content), WORDS, TAGS)
    return message.said, read_calls(message)


ARGUMENTS = st.dictionaries(LETTERS, VALUES, max_size=3)


@pytest.mark.parametrize("name", TOOL_FORMATS.names())
@given(calls=st.lists(st.builds(FunctionCall, LETTERS, ARGUMENTS), min_size=1, max_size=2))
def test_calls_are_read_back_as_they_were_written(name, calls):
    tool_format = TOOL_FORMATS.get(name)
    written = calls[:1] if name == "glm4" else calls

    assert tool_format.extract_calls(tool_format.render_calls(written)) == written


@pytest.mark.parametrize("name", TOOL_FORMATS.names())
@pytest.mark.parametrize("text", ["", "It is 3 degrees.", "One line.\nAnd <b>another</b>."])
def test_a_plain_answer_calls_nothing(name, text):
    assert TOOL_FORMATS.get(name).extract_calls(text) == []


@pytest.mark.parametrize("name", TOOL_FORMATS.names())
def test_every_tool_is_described_and_an_empty_list_says_nothing(name):
    described = TOOL_FORMATS.get(name).describe(TOOLS)

    assert "get_weather" in described
    assert "now" in described
    assert "天气" in described
    assert TOOL_FORMATS.get(name).describe("[]") == (
        "<|tool|>[]<|/tool|>" if name == "phi4_mini" else ""
    )
    assert {TOOL_FORMATS.get(name).describe(blank) for blank in (" ", "\n", "null")} == {""}


def test_the_date_in_llama3s_system_text_stands_still():
    assert f"Today Date: {TODAY}\n" in TOOL_FORMATS.get("llama3").describe(TOOLS)


def test_arguments_that_are_json_in_a_text_become_the_object():
    content = json.dumps({"name": "find", "arguments": '{"a": 1}'})

    assert parse_calls(content) == ("", [FunctionCall("find", {"a": 1})])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("find it", "not JSON"),
        ('{"arguments": {}}', "without a name"),
        ('{"name": "find"}', "no arguments"),
        ("[1]", "without a name"),
    ],
)
def test_a_call_that_cannot_be_read_says_what_is_wrong(content, reason):
    with pytest.raises(TemplateError, match=reason):
        parse_calls(content)


@pytest.mark.parametrize("tools", ["search", '{"name": "search"}', '[{"title": "search"}]', "[1]"])
def test_tools_that_cannot_be_read_say_what_is_expected(tools):
    with pytest.raises(TemplateError, match=r'\[\{"name": "search"'):
        parse_tools(tools)


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ("city", "parameters"),
        ([{"city": "string"}], "parameters"),
        ({"properties": ["city"]}, "parameters.properties"),
        ({"properties": {"city": "string"}}, "parameters.properties.city"),
        ({"properties": {"city": None}}, "parameters.properties.city"),
        ({"properties": {"city": {"enum": "Paris"}}}, "parameters.properties.city.enum"),
        ({"properties": {"city": {"items": "string"}}}, "parameters.properties.city.items"),
        ({"properties": {}, "required": "city"}, "parameters.required"),
    ],
)
@pytest.mark.parametrize("name", TOOL_FORMATS.names())
def test_a_schema_of_a_wrong_shape_is_refused_by_every_format(name, parameters, place):
    tools = json.dumps([{"name": "find", "parameters": parameters}])

    with pytest.raises(TemplateError, match=rf"^{place} of tool 'find' is no (object|list): "):
        TOOL_FORMATS.get(name).describe(tools)


def test_a_call_is_found_behind_text():
    calls = [FunctionCall("find", {"a": 1})]
    for name in TOOL_FORMATS.names():
        tool_format = TOOL_FORMATS.get(name)
        if tool_format.takes_text:
            marker = "[TOOL_CALLS]" if name == "mistral" else tool_format.after_text
            text = f"I look.{marker}{tool_format.render_calls(calls)}"
            assert tool_format.extract_calls(text) == calls, name


def test_glm4_refuses_two_calls_in_one_turn():
    with pytest.raises(TemplateError, match="one call a turn"):
        TOOL_FORMATS.get("glm4").render_calls([FunctionCall("a", {}), FunctionCall("b", {})])


def test_gemma4_writes_tools_and_calls_in_its_short_form():
    tool_format = TOOL_FORMATS.get("gemma4")
    tools = (
        '[{"name": "find", "description": "Finds.", "parameters": {"type": "object", "properties": '
        '{"text": {"type": "string", "description": "What"}, "many": {"type": "integer"}}, '
        '"required": ["text", "many"]}, "response": {"type": "object", "description": "All"}}]'
    )
    call = FunctionCall("find", {"text": "a", "many": [1, None, True], "deep": {"b": 2, "a": "c"}})

    assert tool_format.describe(tools) == (
        'declaration:find{description:<|"|>Finds.<|"|>,parameters:{properties:{text:{description:'
        '<|"|>What<|"|>,type:<|"|>STRING<|"|>},many:{type:<|"|>INTEGER<|"|>}},required:[<|"|>text'
        '<|"|>,<|"|>many<|"|>],type:<|"|>OBJECT<|"|>},response:{description:<|"|>All<|"|>,type:'
        '<|"|>OBJECT<|"|>}}'
    )
    assert tool_format.render_calls([call]) == (
        '<|tool_call>call:find{deep:{a:<|"|>c<|"|>,b:2},many:[1,null,true],text:<|"|>a<|"|>}'
        "<tool_call|>"
    )


def test_an_unknown_format_gets_the_nearest_name():
    with pytest.raises(UnknownName, match="qwen"):
        TOOL_FORMATS.get("qwenn")
