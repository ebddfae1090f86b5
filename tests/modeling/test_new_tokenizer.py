"""a tokenizer that is learned from texts"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.tokenize import begins_words_at_spaces
from luthier.errors import DataError
from luthier.modeling.tokenizer import LEAST, train_tokenizer
from tests import tiny

TOKENIZER = train_tokenizer(tiny.CORPUS, 300)


@given(st.text())
def test_any_text_goes_through_and_comes_back(text: str):
    text = text.encode("utf-8", "ignore").decode()

    ids = TOKENIZER(text)["input_ids"]

    assert TOKENIZER.decode(ids) == text


def test_the_vocabulary_has_the_size_that_was_asked_for():
    assert len(TOKENIZER) == 300
    assert len(train_tokenizer(tiny.CORPUS, LEAST)) == LEAST
    assert len(train_tokenizer(["aa"], 5000)) < 300


def test_texts_end_with_a_token_that_does_not_pad(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)

    loaded = tiny.PreTrainedTokenizerFast.from_pretrained(tmp_path)

    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == (
        "<|endoftext|>",
        "<|pad|>",
        None,
    )
    assert loaded("<|im_end|>")["input_ids"] == [3]
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    assert loaded.apply_chat_template(chat, tokenize=False).startswith("<|im_start|>user\nWho?")


def test_words_are_tokenised_once():
    assert begins_words_at_spaces(TOKENIZER)


def test_no_text_is_no_corpus():
    with pytest.raises(DataError, match="no text to learn a tokenizer from"):
        train_tokenizer([], 300)
