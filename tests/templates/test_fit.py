from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from luthier.errors import TemplateError, UnknownName
from luthier.templates.chat_template import ChatTemplate
from luthier.templates.fit import (
    choose_template,
    find_other_ids,
    fit_chat_template,
    fit_tokenizer,
    kind_of,
)
from luthier.templates.jinja import write_chat_template
from luthier.templates.template import TEMPLATES, Template
from tests import tiny
from tests.templates.battery import CALL, call_tools, join, talk


def test_the_first_stop_word_becomes_eos_where_the_template_says_so():
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"

    fitted = fit_tokenizer(tokenizer, TEMPLATES.get("chatml"))

    assert tokenizer.eos_token == "<|im_end|>"
    assert fitted.stop_token_ids == tuple(
        tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    )
    assert fitted.num_new_tokens == 0
    assert "EOS is '<|im_end|>' (was '<|endoftext|>')." in fitted.notes


def test_eos_stays_and_stop_words_are_added_where_it_does_not():
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"

    fitted = fit_tokenizer(tokenizer, TEMPLATES.get("smollm2"))

    assert tokenizer.eos_token == "<|endoftext|>"
    assert fitted.stop_token_ids == tuple(
        tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    )


def test_new_tokens_are_counted_and_named():
    tokenizer = tiny.make_tokenizer()
    before = len(tokenizer)

    fitted = fit_tokenizer(tokenizer, TEMPLATES.get("llama3"))

    assert fitted.num_new_tokens == len(tokenizer) - before == 2
    assert any("<|eom_id|>, <|eot_id|>" in note and "grows" in note for note in fitted.notes)
    assert tokenizer.encode("<|eot_id|>", add_special_tokens=False) == [fitted.stop_token_ids[0]]


def test_a_tokenizer_without_eos_and_pad_gets_them():
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.pad_token = None

    fitted = fit_tokenizer(tokenizer, TEMPLATES.get("alpaca"))

    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert fitted.num_new_tokens == 0


def test_other_special_tokens_are_kept():
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<mine>"]})

    fit_tokenizer(tokenizer, TEMPLATES.get("llama3"))

    assert "<mine>" in tokenizer.all_special_tokens


@pytest.mark.parametrize("name", TEMPLATES.names())
def test_fitting_twice_changes_nothing_more(name):
    tokenizer = tiny.make_tokenizer()
    template = TEMPLATES.get(name)
    first = fit_tokenizer(tokenizer, template)
    state = (len(tokenizer), tokenizer.special_tokens_map, tokenizer.chat_template)

    second = fit_tokenizer(tokenizer, template)

    assert second.num_new_tokens == 0
    assert second.stop_token_ids == first.stop_token_ids
    assert (len(tokenizer), tokenizer.special_tokens_map, tokenizer.chat_template) == state


def fit(tokenizer: Any, name: str, kinds: Any = ()) -> str:
    template = TEMPLATES.get(name)
    fit_tokenizer(tokenizer, template)
    return fit_chat_template(tokenizer, template, kinds)


def test_a_chat_template_is_written_where_there_is_none():
    tokenizer = tiny.make_tokenizer(chat_template=None)

    note = fit(tokenizer, "smollm2")

    assert tokenizer.chat_template == write_chat_template(TEMPLATES.get("smollm2"))
    assert "is saved" in note
    assert fit(tokenizer, "smollm2") == ""


def test_a_chat_template_that_renders_otherwise_is_replaced_and_the_difference_shown():
    tokenizer = tiny.make_tokenizer()

    note = fit(tokenizer, "smollm2")

    assert tokenizer.chat_template == write_chat_template(TEMPLATES.get("smollm2"))
    assert "replaced" in note
    assert "On a conversation with several turns" in note
    assert "<|im_start|>system" in note


def test_a_chat_template_that_writes_the_same_prompts_is_kept():
    own = write_chat_template(TEMPLATES.get("smollm2")) + "{#- written by somebody else #}"
    tokenizer = tiny.make_tokenizer(chat_template=own)

    assert "is kept" in fit(tokenizer, "smollm2")
    assert tokenizer.chat_template == own


REFUSES_SYSTEM = tiny.CHATML.replace(
    "{% for",
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}{% for",
    1,
)
DROPS_TOOLS = write_chat_template(TEMPLATES.get("qwen3_nothink")).replace(
    "{%- if has_tools and tools %}", "{%- if false %}"
)


def test_a_chat_template_that_refuses_a_system_text_is_replaced():
    note = fit(tiny.make_tokenizer(chat_template=REFUSES_SYSTEM), "qwen3_nothink")

    assert "refuses" in note
    assert "none" in note


@pytest.mark.parametrize(
    ("own", "kind", "is_kept"),
    [
        (DROPS_TOOLS, "", True),
        (DROPS_TOOLS, "several turns, a system text, a thought", True),
        (DROPS_TOOLS, "a call of a tool", True),
        (DROPS_TOOLS, "tools", False),
        (DROPS_TOOLS, "several turns, tools, a call of a tool", False),
        (REFUSES_SYSTEM, "several turns", True),
        (REFUSES_SYSTEM, "a system text", False),
    ],
)
def test_a_chat_template_is_judged_by_what_the_data_holds(own, kind, is_kept):
    tokenizer = tiny.make_tokenizer(chat_template=own)

    note = fit(tokenizer, "qwen3_nothink", {"", kind})

    assert (tokenizer.chat_template == own) == is_kept
    assert is_kept or f"On a conversation with {kind}" in note


def test_a_chat_template_that_writes_the_last_answer_otherwise_is_kept_for_its_prompts():
    own = tiny.CHATML.replace(
        "{{ message['content']",
        "{% if loop.last and message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ message['content']",
    )

    assert "is kept" in fit(tiny.make_tokenizer(chat_template=own), "qwen3_nothink", {""})


def test_how_an_earlier_answer_ends_is_looked_at_whatever_the_data_holds():
    own = tiny.CHATML.replace(
        "<|im_end|>", "{{ '</s>' if message['role'] == 'assistant' else '<|im_end|>' }}"
    )

    assert "several turns" in fit(tiny.make_tokenizer(chat_template=own), "qwen3_nothink", {""})


def test_a_default_system_text_does_not_matter_where_every_row_has_its_own():
    theirs = dataclasses.replace(TEMPLATES.get("smollm2"), default_system="Another.")
    own = write_chat_template(theirs)
    tokenizer = tiny.make_tokenizer(chat_template=own)

    assert "is kept" in fit(tokenizer, "smollm2", {"a system text"})
    assert "replaced" in fit(tokenizer, "smollm2", {"a system text", ""})


@pytest.mark.parametrize("prepend", ["first", "always", "normal"])
def test_a_text_that_reads_as_other_tokens_than_its_pieces_is_told(prepend):
    told = find_other_ids(tiny.make_sentencepiece(prepend), TEMPLATES.get("llama2"))

    assert "'llama2' is read piece by piece" in told
    assert "▁" in told
    assert find_other_ids(tiny.make_tokenizer(), TEMPLATES.get("chatml")) == ""


def test_the_kind_of_a_conversation_names_all_that_it_holds():
    template = TEMPLATES.get("qwen3")
    thought = "<think>\nso\n</think>\n\n"

    assert kind_of(talk("a", "b"), template) == ""
    assert kind_of(talk("a", "b", "c", thought + "d", system="S"), template) == (
        "several turns, a system text, a thought"
    )
    assert kind_of(call_tools(CALL), template) == "tools, a call of a tool"
    assert kind_of(talk("a", "◁think▷so◁/think▷b"), TEMPLATES.get("kimi_vl")) == "a thought"


def test_a_tokenizers_own_chat_template_is_left_alone():
    tokenizer = tiny.make_tokenizer()

    fitted = fit_tokenizer(tokenizer, ChatTemplate(tokenizer))

    assert tokenizer.chat_template == tiny.CHATML
    assert fitted.stop_token_ids == (tokenizer.eos_token_id,)
    assert fitted.num_new_tokens == 0


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
