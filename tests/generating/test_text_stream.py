from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.generating.text_stream import TextStream
from tests import tiny

TOKENIZER = tiny.make_tokenizer()


def pieces_of(token_ids: list[int], skip_special_tokens: bool = True) -> list[str]:
    stream = TextStream(TOKENIZER, skip_special_tokens)
    return [stream.push(token_id) for token_id in token_ids] + [stream.end()]


@pytest.mark.parametrize(
    "text", ["Who are you?", "我是小提琴", "🎻🎶 e\u0301 à", " two  blanks ", "a\ufffd b", "\n\n"]
)
def test_pieces_joined_are_the_text_and_never_half_a_character(text: str) -> None:
    token_ids = TOKENIZER(text)["input_ids"]

    pieces = pieces_of(token_ids)

    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_text_is_handed_out_as_soon_as_it_is_whole() -> None:
    token_ids = TOKENIZER("ab🎻c", add_special_tokens=False)["input_ids"]

    pieces = pieces_of(token_ids)

    assert pieces == ["a", "b", "", "", "", "🎻", "c", ""]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 399), max_size=30), st.booleans())
def test_any_tokens_come_out_as_they_are_decoded_whole(
    token_ids: list[int], skip_special_tokens: bool
) -> None:
    whole = TOKENIZER.decode(
        token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )

    assert "".join(pieces_of(token_ids, skip_special_tokens)) == whole


def test_half_a_character_at_the_end_is_not_lost() -> None:
    token_ids = TOKENIZER("a🎻", add_special_tokens=False)["input_ids"][:-1]

    assert "".join(pieces_of(token_ids)) == TOKENIZER.decode(token_ids)
