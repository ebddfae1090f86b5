from __future__ import annotations

import dataclasses
import itertools

import jinja2
import pytest

from luthier.records import Conversation
from luthier.templates.chat_template import as_chat, as_chat_tools
from luthier.templates.fit import with_tool_format
from luthier.templates.jinja import write_chat_template
from luthier.templates.template import TEMPLATES, Template
from luthier.templates.tool_format import TOOL_FORMATS
from tests.templates.battery import CALL, call_tools, conversations, join, talk

POLICIES = list(itertools.product((True, False, None), (False, True)))


@pytest.fixture(scope="module")
def render():
    """Transformers' own apply_chat_template, on a tokenizer with nothing but BOS and EOS."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>")),
        bos_token="<s>",
        eos_token="</s>",
    )

    def apply(template: Template, conversation: Conversation, is_prompt: bool = False, **given):
        tokenizer.chat_template = write_chat_template(template)
        return tokenizer.apply_chat_template(
            as_chat(conversation, template.thought_words, template.tool_call_words),
            tools=as_chat_tools(conversation.tools),
            tokenize=False,
            add_generation_prompt=is_prompt,
            **given,
        )

    return apply


def check(render, template: Template, **given) -> None:
    for name, conversation in conversations(template).items():
        asked = dataclasses.replace(conversation, messages=conversation.messages[:-1])
        turns = template.turns(conversation)
        trained = join([piece for turn in turns for piece in (*turn.prompt, *turn.answer)])

        assert render(template, conversation, **given) == trained, name
        assert render(template, asked, is_prompt=True, **given) == join(template.prompt(asked)), (
            name
        )


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_a_chat_template_renders_what_its_template_trains_and_prompts(render, name):
    check(render, TEMPLATES.get(name))


@pytest.mark.parametrize("name", ["qwen3", "glm4_7", "gpt_oss", "deepseekr1"])
@pytest.mark.parametrize(("enable_thinking", "preserve_thinking"), POLICIES)
def test_a_chat_template_keeps_the_policy_for_thoughts(
    render, name, enable_thinking, preserve_thinking
):
    policy = {"enable_thinking": enable_thinking, "preserve_thinking": preserve_thinking}

    check(render, dataclasses.replace(TEMPLATES.get(name), **policy))


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_apply_chat_template_takes_the_policy_as_arguments(render, enable_thinking):
    template = TEMPLATES.get("qwen3")
    wanted = dataclasses.replace(template, enable_thinking=enable_thinking, preserve_thinking=True)
    asked = talk("Hi", "<think>\nso\n</think>\n\nHello", "Again")

    text = render(
        template, asked, is_prompt=True, enable_thinking=enable_thinking, preserve_thinking=True
    )

    assert text == join(wanted.prompt(asked))


@pytest.mark.parametrize("tool_format", TOOL_FORMATS.names())
@pytest.mark.parametrize("name", ["qwen", "glm4"])
def test_every_tool_format_reads_the_same_in_jinja(render, name, tool_format):
    check(render, with_tool_format(TEMPLATES.get(name), tool_format))


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_a_default_system_text_of_ones_own_is_rendered(render, name):
    template = dataclasses.replace(TEMPLATES.get(name), default_system='It\'s "mine"\n{{x}} \\ 三')
    asked = talk("Hi")

    text = render(template, asked, is_prompt=True)

    assert text == join(template.prompt(asked))
    assert template.default_system in text


def test_tool_messages_in_a_row_become_one_observation(render):
    template = TEMPLATES.get("qwen")
    conversation = call_tools(CALL)
    messages = as_chat(conversation)
    messages[2:3] = [{"role": "tool", "content": "one"}, {"role": "tool", "content": "two"}]

    text = jinja2.Template(write_chat_template(template)).render(messages=messages)

    assert "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>" in text
    assert text.count("<|im_start|>assistant") == 2


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_nothink"])
def test_reasoning_content_stands_as_a_thought(render, name, key):
    template = TEMPLATES.get(name)
    written = jinja2.Template(write_chat_template(template))
    question = {"role": "user", "content": "Hi"}

    apart = written.render(messages=[question, {"role": "assistant", "content": "yes", key: "so"}])

    assert apart == join(
        [
            piece
            for turn in template.turns(talk("Hi", "<think>\nso\n</think>\n\nyes"))
            for piece in (*turn.prompt, *turn.answer)
        ]
    )


def test_parts_of_text_are_joined(render):
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    written = jinja2.Template(write_chat_template(TEMPLATES.get("chatml")))

    assert "Hello there" in written.render(messages=[{"role": "user", "content": parts}])


def test_whitespace_settings_of_the_environment_do_not_matter():
    template = TEMPLATES.get("qwen3")
    messages = as_chat(call_tools(CALL, system="S"))
    tools = as_chat_tools(call_tools(CALL).tools)
    texts = set()
    for trim, strip in itertools.product((False, True), repeat=2):
        environment = jinja2.Environment(trim_blocks=trim, lstrip_blocks=strip, autoescape=False)
        environment.filters["tojson"] = lambda value, indent=None: str(value)
        written = environment.from_string(write_chat_template(template))
        texts.add(written.render(messages=messages, tools=tools))

    assert len(texts) == 1


def test_an_unknown_role_is_an_error(render):
    environment = jinja2.Environment(autoescape=False)

    def raise_exception(text: str) -> None:
        raise jinja2.TemplateError(text)

    environment.globals["raise_exception"] = raise_exception
    written = environment.from_string(write_chat_template(TEMPLATES.get("chatml")))

    with pytest.raises(jinja2.TemplateError, match="critic"):
        written.render(messages=[{"role": "critic", "content": "no"}])
