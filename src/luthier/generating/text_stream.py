"""Tokens one by one -> text as soon as it is sure."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"
"""What a decoder shows for bytes that are not yet, or not at all, a character."""


class TextStream:
    """Decodes a growing answer piece by piece; the pieces joined are the answer's text.

    A character may take several tokens, and some tokenizers drop the blank before a first word. So
    each piece is the difference of two decodings that begin at the same earlier token, and nothing
    is handed out while the text ends in half a character. Works in linear time.

    Args:
        tokenizer: of the model that answers.
        skip_special_tokens: whether special tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._token_ids: list[int] = []
        self._start = 0  # where both decodings begin
        self._told = 0  # tokens whose text was handed out

    def push(self, token_id: int) -> str:
        """The text that became sure with one more token, often a word, sometimes nothing."""
        self._token_ids.append(token_id)
        new = self._new_text()
        if not new or new.endswith(UNFINISHED):
            return ""
        self._start, self._told = self._told, len(self._token_ids)
        return new

    def end(self) -> str:
        """What is left when no more tokens come."""
        new = self._new_text()
        self._start = self._told = len(self._token_ids)
        return new

    def _new_text(self) -> str:
        told = self._decode(self._token_ids[self._start : self._told])
        return self._decode(self._token_ids[self._start :])[len(told) :]

    def _decode(self, token_ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                token_ids,
                skip_special_tokens=self._skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        )
