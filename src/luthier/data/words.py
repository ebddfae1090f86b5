"""texts -> token ids, each word tokenised once."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    Ids: TypeAlias = array[int]
else:
    Ids = array

TYPECODE = "i"
"""Token ids are 32-bit integers here as in the tables that they are written to."""

MOST_WORDS = 200_000
"""How many words are remembered; about 40 MB."""

LONGEST_WORD = 64
"""Longer ones (a Chinese paragraph has no spaces) are not met again."""

_CHECKED_TEXTS = 32
_WORDS_A_CALL = 64

_ODD_SPACE = re.compile(r"(?:\A|\s) | (?:\s|\Z)")
_RARE_SPACES = "\t\r\v\f\x1c\x1d\x1e\x1f"
_CUT = re.compile(r"(?<=\S) (?=\S)")


class TextTokenizer:
    """Gives the ids that the tokenizer gives, without added special tokens, in less time.

    A byte-level BPE tokenizer splits a text into words before it looks for tokens, and a space
    between two characters that are none always begins a word. So the ids of a text are those of
    its stretches between such spaces, and most stretches were met before. Whether a tokenizer is
    of that kind is read from its parts and tried on every pair of neighbours that its splitting
    could depend on; the first texts are also tokenised as a whole, and compared. All others are
    asked for whole texts.

    Args:
        tokenizer: any of `transformers`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._is_by_word: bool | None = None
        self._memory: dict[str, bytes] = {}
        self._added: dict[str, bytes] = {}
        self._added_patterns: list[re.Pattern[str]] = []
        self._is_checked = False

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        if self._is_by_word is None:
            self._is_by_word = begins_words_at_spaces(self.tokenizer)
            if self._is_by_word:
                self._read_added_tokens()
        if not self._is_by_word or not texts:
            return self._encode_whole(texts)
        found = self._encode_by_word(texts)
        if not self._is_checked:
            every = len(texts) // _CHECKED_TEXTS + 1
            self._is_by_word = found[::every] == self._encode_whole(texts[::every])
            self._is_checked = True
            if not self._is_by_word:
                return self._encode_whole(texts)
        return found

    def _encode_whole(self, texts: Sequence[str]) -> list[Ids]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            padding=False,
            truncation=False,
            verbose=False,
        )
        return [array(TYPECODE, ids) for ids in encoded["input_ids"]]

    def _read_added_tokens(self) -> None:
        added = self.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        self._added = {
            token.content: array(TYPECODE, [number]).tobytes() for number, token in added.items()
        }
        for is_normalised in (False, True):
            texts = [one.content for one in added.values() if one.normalized is is_normalised]
            if texts:
                longest_first = sorted(texts, key=len, reverse=True)
                either = "|".join(map(re.escape, longest_first))
                self._added_patterns.append(re.compile(f"({either})"))

    def _encode_by_word(self, texts: Sequence[str]) -> list[Ids]:
        split = [self._split(text) for text in texts]
        met: set[str] = set()
        for words in split:
            met.update(words)
        self._learn(met)
        ids_of = self._memory.__getitem__
        found = []
        for words in split:
            ids = array(TYPECODE)
            ids.frombytes(b"".join(map(ids_of, words)))
            found.append(ids)
        self._forget(met)
        return found

    def _split(self, text: str) -> list[str]:
        """The words, each without the space before it; one that had none is given two."""
        words: list[str] = []
        for stretch in self._stretches(text):
            if stretch in self._added:
                words.append(f"  {stretch}")
            elif stretch:
                start = len(words)
                words += _CUT.split(stretch) if _is_oddly_spaced(stretch) else stretch.split(" ")
                words[start] = f"  {words[start]}"
        return words

    def _stretches(self, text: str) -> list[str]:
        """The text cut before and behind each added token."""
        stretches = [text]
        for pattern in self._added_patterns:
            stretches = [
                part
                for one in stretches
                for part in ([one] if one in self._added else pattern.split(one))
            ]
        return stretches

    def _learn(self, met: set[str]) -> None:
        """Tokenises the words that are new, many with one call."""
        new = met.difference(self._memory)
        added = {word for word in new if word.startswith("  ") and word[2:] in self._added}
        words = list(new.difference(added))
        texts = [word[2:] if word.startswith("  ") else f" {word}" for word in words]
        self._memory |= zip(words, self._encode_words(texts), strict=True)
        self._memory |= {word: self._added[word[2:]] for word in added}

    def _encode_words(self, words: list[str]) -> list[bytes]:
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        calls = [words[at : at + _WORDS_A_CALL] for at in range(0, len(words), _WORDS_A_CALL)]
        encodings = backend.encode_batch(calls, is_pretokenized=True, add_special_tokens=False)
        found: list[bytes] = []
        for call, encoding in zip(calls, encodings, strict=True):
            by_word: list[list[int]] = [[] for _ in call]
            for number, token in zip(encoding.word_ids, encoding.ids, strict=True):
                by_word[number].append(token)
            found += [array(TYPECODE, ids).tobytes() for ids in by_word]
        return found

    def _forget(self, met: set[str]) -> None:
        if len(self._memory) > MOST_WORDS:
            self._memory.clear()
        else:
            for word in met:
                if len(word) > LONGEST_WORD:
                    del self._memory[word]


def _is_oddly_spaced(text: str) -> bool:
    """Whether a space stands at an end or beside another space character."""
    if not text.isascii() or any(map(text.__contains__, _RARE_SPACES)):
        return _ODD_SPACE.search(text) is not None
    return "  " in text or " \n" in text or "\n " in text or text[0] == " " or text[-1] == " "


def begins_words_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a space between characters that are none always begins a word of its own.

    Known of byte-level BPE with a splitting pattern before it. Added tokens that take the spaces
    beside them, or that hold one, speak against it.
    """
    from tokenizers.models import BPE

    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return False
    backend = tokenizer.backend_tokenizer
    model, splitter = backend.model, backend.pre_tokenizer
    if backend.normalizer is not None or splitter is None or not isinstance(model, BPE):
        return False
    if model.dropout or model.end_of_word_suffix or model.continuing_subword_prefix:
        return False
    parts = json.loads(splitter.__getstate__())
    parts = parts["pretokenizers"] if parts["type"] == "Sequence" else [parts]
    if parts[-1]["type"] != "ByteLevel" or not all(
        part["type"] in ("ByteLevel", "Split", "Digits") and not part.get("add_prefix_space")
        for part in parts
    ):
        return False
    for token in backend.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or token.single_word or _CUT.search(token.content):
            return False
    return _splits_alike(splitter)


_NEIGHBOURS = "aZé1٣一あ.,'-(\"_/’。😀\u0301"


def _splits_alike(splitter: Any) -> bool:
    """Whether texts with a space in the middle split as their halves do."""

    def split(text: str) -> list[str]:
        return [word for word, _ in splitter.pre_tokenize_str(text)]

    before = [*_NEIGHBOURS, *(f"a{one}" for one in _NEIGHBOURS), "\n.", "a's", "12"]
    behind = [*_NEIGHBOURS, *(f"{one}a" for one in _NEIGHBOURS), ".\n", "'s a", "12"]
    halves = {text: split(text) for text in before} | {
        f" {text}": split(f" {text}") for text in behind
    }
    return all(
        split(f"{left} {right}") == halves[left] + halves[f" {right}"]
        for left, right in product(before, behind)
    )
