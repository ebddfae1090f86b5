"""Tokens one by one -> text as soon as it is sure, up to the text that ends it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"
"""What a decoder shows for bytes that are not yet, or not at all, a character."""


class TextStream:
    """Decodes a growing answer piece by piece; the pieces joined are the answer's text.

    A character may take several tokens, and some tokenizers drop the blank before a first word. So
    each piece is the difference of two decodings that begin at the same earlier token, and nothing
    is handed out while the text ends in half a character, or in what may be the beginning of a stop
    string. Works in linear time.

    Args:
        tokenizer: of the model that answers.
        skip_special_tokens: whether special tokens are left out.
        stop_strings: the text ends before the first of them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        skip_special_tokens: bool,
        stop_strings: Sequence[str] = (),
    ) -> None:
        self.stop: str | None = None  # the stop string that was found; there is no more text
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stop_strings = [each for each in stop_strings if each]
        self._held = ""  # decoded, but it may begin a stop string
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
        return self._sure(new)

    def end(self) -> str:
        """What is left when no more tokens come."""
        new = self._new_text()
        self._start = self._told = len(self._token_ids)
        sure = self._sure(new)
        held, self._held = self._held, ""
        return sure + held

    def _sure(self, new: str) -> str:
        """What no stop string can take back of the text so far."""
        if self.stop is not None:
            return ""
        text, self._held = self._held + new, ""
        found = [(at, each) for each in self._stop_strings if (at := text.find(each)) >= 0]
        if found:
            at, self.stop = min(found, key=lambda one: (one[0], -len(one[1])))
            return text[:at]
        most = min(len(text), max(map(len, self._stop_strings), default=1) - 1)
        for length in range(most, 0, -1):
            if any(each.startswith(text[-length:]) for each in self._stop_strings):
                self._held = text[-length:]
                return text[:-length]
        return text

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
