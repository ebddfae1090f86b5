from __future__ import annotations

import pytest

from luthier.templates.chat_template import ChatTemplate
from luthier.templates.fit import fit_tokenizer
from luthier.templates.jinja import write_chat_template
from luthier.templates.registry import TEMPLATES
from tests import tiny


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


def test_a_chat_template_is_written_where_there_is_none():
    tokenizer = tiny.make_tokenizer(chat_template=None)

    fit_tokenizer(tokenizer, TEMPLATES.get("smollm2"))

    assert tokenizer.chat_template == write_chat_template(TEMPLATES.get("smollm2"))


def test_a_chat_template_that_renders_otherwise_is_replaced_and_the_difference_shown():
    tokenizer = tiny.make_tokenizer()

    fitted = fit_tokenizer(tokenizer, TEMPLATES.get("smollm2"))

    assert tokenizer.chat_template == write_chat_template(TEMPLATES.get("smollm2"))
    (note,) = [note for note in fitted.notes if "replaced" in note]
    assert "one question and answer" in note
    assert "<|im_start|>system" in note


def test_a_chat_template_that_renders_the_same_is_kept():
    template = TEMPLATES.get("smollm2")
    own = write_chat_template(template) + "{#- written by somebody else #}"
    tokenizer = tiny.make_tokenizer(chat_template=own)

    fitted = fit_tokenizer(tokenizer, template)

    assert tokenizer.chat_template == own
    assert any("is kept" in note for note in fitted.notes)


def test_a_chat_template_that_refuses_a_system_text_is_replaced():
    refusing = tiny.CHATML.replace(
        "{% for",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}{% for",
        1,
    )
    tokenizer = tiny.make_tokenizer(chat_template=refusing)

    fitted = fit_tokenizer(tokenizer, TEMPLATES.get("qwen3_nothink"))

    assert any("refuses" in note and "none" in note for note in fitted.notes)


def test_a_tokenizers_own_chat_template_is_left_alone():
    tokenizer = tiny.make_tokenizer()

    fitted = fit_tokenizer(tokenizer, ChatTemplate(tokenizer))

    assert tokenizer.chat_template == tiny.CHATML
    assert fitted.stop_token_ids == (tokenizer.eos_token_id,)
    assert fitted.num_new_tokens == 0
