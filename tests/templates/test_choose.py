from __future__ import annotations

from dataclasses import dataclass

import pytest

from luthier.errors import TemplateError, UnknownName
from luthier.templates.chat_template import ChatTemplate
from luthier.templates.choose import choose_template
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template
from tests import tiny
from tests.templates.battery import join, talk


@dataclass(frozen=True)
class Options:
    template: str | None = None
    tool_format: str | None = None
    default_system: str | None = None
    enable_thinking: bool | None = True
    preserve_thinking: bool = False
    train_on_prompt: bool = False


def named(**options: object) -> Template:
    template = choose_template(Options(**options), tiny.make_tokenizer(chat_template=None))
    assert isinstance(template, Template)
    return template


def test_options_never_leak_into_the_registry_or_a_second_use():
    before = {name: TEMPLATES.get(name).fingerprint() for name in ("qwen3", "llama2")}

    changed = named(
        template="qwen3", tool_format="llama3", default_system="S", enable_thinking=False
    )

    assert changed.default_system == "S"
    assert changed.tool_format == "llama3"
    assert changed.enable_thinking is False
    assert named(template="qwen3") == TEMPLATES.get("qwen3")
    assert before == {name: TEMPLATES.get(name).fingerprint() for name in before}


def test_an_empty_default_system_takes_the_templates_away():
    assert "system" not in join(named(template="qwen", default_system="").prompt(talk("Hi")))


def test_an_unknown_template_gets_the_nearest_name():
    with pytest.raises(UnknownName, match="'qwen3_nothink'"):
        named(template="qwen3_no_think")


def test_an_unknown_tool_format_gets_the_nearest_name():
    with pytest.raises(UnknownName, match="'llama3'"):
        named(template="qwen", tool_format="lama3")


def test_names_of_one_form_keep_their_own_name():
    template = named(template="qwen3_vl")

    assert template.name == "qwen3_vl"
    assert template.turns(talk("Hi", "Hello")) == named(template="qwen3").turns(talk("Hi", "Hello"))


def test_prompts_are_not_learned_where_eos_is_a_label_of_the_next_question():
    with pytest.raises(TemplateError, match="train_on_prompt"):
        named(template="glm4", train_on_prompt=True)


def test_no_name_takes_the_tokenizers_own_chat_template(tiny_tokenizer):
    template = choose_template(Options(default_system="S"), tiny_tokenizer)

    assert isinstance(template, ChatTemplate)
    assert "system\nS<|im_end|>" in join(template.prompt(talk("Hi")))


def test_no_name_and_no_chat_template_is_said(capsys):
    template = named()

    assert template.name == "empty"
    assert "template: NAME" in capsys.readouterr().err


def test_a_tool_format_needs_a_named_template(tiny_tokenizer):
    with pytest.raises(TemplateError, match="tool_format needs a named template"):
        choose_template(Options(tool_format="qwen"), tiny_tokenizer)
