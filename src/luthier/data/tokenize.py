"""texts -> token ids by fast tokenization: each word is looked up in a cache of tokens."""

from __future__ import annotations

import copy
import json
import re
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING, Any, TypeAlias
from unicodedata import is_normalized

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Ids: TypeAlias = array[int]
else:
    Ids = array

TYPECODE = "i"
"""Token ids are 32-bit integers here as in the tables that they are written to."""

LONGEST_WORD = 1024
"""Bytes of the longest word that is kept."""

MOST_WORDS, MOST_IDS = 250_000, 4_000_000
"""How many are kept, and how many ids of theirs, before all are forgotten; about 50 MB."""

_CHECKED_TEXTS = 32
_WORDS_A_CALL = 64
_TEXTS_TOGETHER = 2000

_CUT = re.compile(r"(?<=\S) (?=\S)")
_WIDE_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_BESIDE_WIDE_SPACE = re.compile(rf" (?={_WIDE_SPACE.pattern})|(?<={_WIDE_SPACE.pattern}) ")
"""A space beside one that is not of ASCII; it may begin no word."""

_BREAK = "\ue0f1\ue0f2\ue0f2"
"""Characters for private use, set into special tokens that stand in contents."""

_STAND_IN = "\ue0f1\ue0f2\ue0f3"
"""With a number and once more behind it, what takes a special token's place in a text."""


class ContentMarks:
    """Tells the special tokens that a template writes from those that stand in contents.

    Contents are marked before they are rendered. What a rendered text then holds of special tokens
    is the template's, and gets stand-ins, which a tokenizer that splits special tokens knows.

    Args:
        tokenizer: one that does not split.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder.items()
        self.special = {token.content: (at, token) for at, token in added if token.special}
        self.stand_ins = {
            text: f"{_STAND_IN}{at}{_STAND_IN}" for text, (at, _) in self.special.items()
        }
        longest_first = sorted(self.special, key=len, reverse=True)
        in_contents = (
            f"{_escaped(text[0])}(?={''.join(map(_escaped, text[1:]))})" for text in longest_first
        )
        self._in_contents = re.compile("|".join(in_contents) or "(?!)")
        either = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._in_templates = re.compile(f"(?:{either})(?!{_BREAK})")

    def mark(self, content: str, spared: Sequence[str] = ()) -> str:
        """A content with its special tokens marked, but for the words `spared`."""
        parts = re.split(f"({'|'.join(map(re.escape, spared))})", content) if spared else [content]
        for at in range(0, len(parts), 2):
            parts[at] = self._in_contents.sub(lambda found: found[0] + _BREAK, parts[at])
        return "".join(parts).replace(_STAND_IN, "\ufffd")

    def replace(self, text: str) -> str:
        """A rendered text with stand-ins for the template's tokens, and without marks."""
        text = self._in_templates.sub(lambda found: self.stand_ins[found[0]], text)
        return without_marks(text)


def without_marks(text: str) -> str:
    """The text as it was before `ContentMarks.mark`."""
    return text.replace(_BREAK, "")


def _escaped(letter: str) -> str:
    """A pattern for a letter, written as such or as JSON may write it."""
    return f"(?:{re.escape(letter)}|\\\\u(?i:{ord(letter):04x}))"


class TextTokenizer:
    """Gives the ids that the tokenizer gives, without added special tokens, in less time.

    A byte-level BPE tokenizer splits a text into words before it looks for tokens, and a space
    between two characters that are none always begins a word. So the ids of a text are those of
    its stretches between such spaces, and most stretches were met before. Whether a tokenizer is
    of that kind is read from its parts and tried on every pair of neighbours that its splitting
    could depend on; the first texts are also tokenised as a whole, and compared. All others are
    asked for whole texts.

    Args:
        tokenizer: any of `transformers`, one that does not split special tokens.
        splits_special: whether special tokens that `marks` marked are read as their letters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, splits_special: bool = False) -> None:
        self.tokenizer = tokenizer
        self.marks = ContentMarks(tokenizer) if splits_special else None
        self._is_by_word: bool | None = None
        self._reads_alike: bool | None = None
        self._is_checked = self._is_normalising = False
        self._cache: TokenCache | None = None
        self._added: dict[str, int] = {}
        self._added_patterns: list[re.Pattern[str]] = []
        self._stood_for: dict[int, int] = {}

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        if self._is_by_word is None:
            self._prepare()
        if self.marks:
            texts = [self.marks.replace(text) for text in texts]
        if not self._is_by_word or not texts:
            return self._encode_whole(texts)
        found: list[Ids] = []
        for start in range(0, len(texts), _TEXTS_TOGETHER):
            found += self._encode_by_word(texts[start : start + _TEXTS_TOGETHER])
        if not self._is_checked:
            every = len(texts) // _CHECKED_TEXTS + 1
            self._is_by_word = found[::every] == self._encode_whole(texts[::every])
            self._is_checked = True
            if not self._is_by_word:
                return self._encode_whole(texts)
        return found

    def encode_behind(self, pairs: Sequence[tuple[str, str]]) -> list[Ids]:
        """The ids of the second text of each pair, where it goes on the first.

        No token is of both texts: what is generated behind the first cannot change it. So where
        the tokenizer would join them, letters are set between.
        """
        found = self.encode([text for _, text in pairs])
        waiting = [] if self.reads_alike else [*range(len(pairs))]
        for between in ("", "\n", "a"):
            heads = [pairs[at][0] + between for at in waiting]
            ids = self.encode(
                heads + [h + pairs[at][1] for h, at in zip(heads, waiting, strict=True)]
            )
            still = []
            for at, head, both in zip(waiting, ids, ids[len(waiting) :], strict=False):
                if both[: len(head)] == head:
                    found[at] = both[len(head) :]
                else:
                    still.append(at)
            waiting = still
        return found

    @property
    def reads_alike(self) -> bool:
        """Whether a text has the same ids at a beginning and behind another."""
        if self._is_by_word is None:
            self._prepare()
        if self._reads_alike is None:
            probes = ["a", " a", "."]
            head, *found = self._encode_whole(["a\n", *probes, *(f"a\n{one}" for one in probes)])
            is_equal = found[3:] == [head + one for one in found[:3]]
            self._reads_alike = bool(self._is_by_word) or is_equal
        return self._reads_alike

    def _prepare(self) -> None:
        if self.marks and self.tokenizer.is_fast:
            self._add_stand_ins(self.marks)
        self._is_by_word = begins_words_at_spaces(self.tokenizer)
        if not self._is_by_word:
            return
        backend, splits = self.tokenizer.backend_tokenizer, self.tokenizer.split_special_tokens
        self._is_normalising = backend.normalizer is not None
        added = backend.get_added_tokens_decoder()
        added = {at: token for at, token in added.items() if not (splits and token.special)}
        self._added = {token.content: self._stood_for.get(at, at) for at, token in added.items()}
        for is_normalised in (False, True):
            texts = [one.content for one in added.values() if one.normalized is is_normalised]
            if texts:
                longest_first = sorted(texts, key=len, reverse=True)
                either = "|".join(map(re.escape, longest_first))
                self._added_patterns.append(re.compile(f"({either})"))

    def _add_stand_ins(self, marks: ContentMarks) -> None:
        """Makes the tokenizer one that splits special tokens and knows the stand-ins."""
        from tokenizers import AddedToken

        self.tokenizer = copy.deepcopy(self.tokenizer)
        self.tokenizer.split_special_tokens = True
        stand_ins = [
            AddedToken(
                marks.stand_ins[text],
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                single_word=token.single_word,
                normalized=token.normalized,
            )
            for text, (_, token) in marks.special.items()
        ]
        self.tokenizer.add_tokens(stand_ins)
        numbers = self.tokenizer.convert_tokens_to_ids([one.content for one in stand_ins])
        real = (at for at, _ in marks.special.values())
        self._stood_for = dict(zip(numbers, real, strict=True))

    def _encode_whole(self, texts: Sequence[str]) -> list[Ids]:
        if not texts:
            return []
        if self.marks and not self.tokenizer.is_fast:
            return [self._encode_between(text) for text in texts]
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            padding=False,
            truncation=False,
            verbose=False,
        )
        real = self._stood_for
        if real:
            return [
                array(TYPECODE, [real.get(one, one) for one in x]) for x in encoded["input_ids"]
            ]
        return [array(TYPECODE, ids) for ids in encoded["input_ids"]]

    def _encode_between(self, text: str) -> Ids:
        """The ids of what stands between stand-ins, split: for tokenizers written in Python."""
        ids: list[int] = []
        for at, part in enumerate(re.split(f"{_STAND_IN}(\\d+){_STAND_IN}", text)):
            if at % 2:
                ids.append(int(part))
            elif part:
                tokens = self.tokenizer.tokenize(part, split_special_tokens=True)
                ids += self.tokenizer.convert_tokens_to_ids(tokens)
        return array(TYPECODE, ids)

    def _encode_by_word(self, texts: Sequence[str]) -> list[Ids]:
        if self._cache is None or self._cache.is_full:
            self._cache = TokenCache()
            self._cache.add(list(self._added), list(self._added.values()), [1] * len(self._added))
        parts = [self._stretches(text) for text in texts]
        stretches = [one for some in parts for one in some]
        content = _bytes("".join(stretches))
        lengths = [len(one) if one.isascii() else len(_bytes(one)) for one in stretches]
        ends = np.cumsum(lengths, dtype=np.int64)
        words = cut_words(content, ends)
        sums = sum_words(content, words)
        word_ends = np.append(words, len(content))[1:]
        is_kept = word_ends - words <= LONGEST_WORD
        numbers = self._cache.find(sums)
        new = np.flatnonzero((numbers < 0) & is_kept)
        if len(new):
            _, firsts = np.unique(sums[0][new], return_index=True)
            once = new[firsts]
            spans = zip(words[once].tolist(), word_ends[once].tolist(), strict=True)
            unknown = [content[a:b].decode("utf-8", errors="surrogatepass") for a, b in spans]
            self._cache.add(unknown, *self._encode_words(unknown))
            numbers[new] = self._cache.find(sums[:, new])
        ids, starts = self._cache.ids_of(numbers)
        of_text = np.concatenate([[0], ends])[list(accumulate(map(len, parts), initial=0))]
        at = starts[np.searchsorted(words, of_text)].tolist()
        found = [array(TYPECODE, ids[a:b].tobytes()) for a, b in pairwise(at)]
        whole = {*(np.searchsorted(of_text, words[~is_kept], "right") - 1).tolist()}
        for number, text in enumerate(texts):
            if not text.isascii() and (
                (self._is_normalising and not is_normalized("NFC", text))
                or (_WIDE_SPACE.search(text) and _BESIDE_WIDE_SPACE.search(text))
            ):
                whole.add(number)
        of_whole = self._encode_whole([texts[number] for number in whole])
        for number, one in zip(whole, of_whole, strict=True):
            found[number] = one
        return found

    def _stretches(self, text: str) -> list[str]:
        """The text cut before and behind each added token."""
        if len(self._added_patterns) == 1:
            return self._added_patterns[0].split(text)
        stretches = [text]
        for pattern in self._added_patterns:
            stretches = [
                part
                for one in stretches
                for part in ([one] if one in self._added else pattern.split(one))
            ]
        return stretches

    def _encode_words(self, words: list[str]) -> tuple[Any, Any]:
        """The ids of all words, one after the other, and how many each has."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        calls = [words[at : at + _WORDS_A_CALL] for at in range(0, len(words), _WORDS_A_CALL)]
        encodings = backend.encode_batch(calls, is_pretokenized=True, add_special_tokens=False)
        counts = [
            np.bincount(np.array(encoding.word_ids, int), minlength=len(call))
            for call, encoding in zip(calls, encodings, strict=True)
        ]
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return np.concatenate(ids), np.concatenate(counts)


def cut_words(content: bytes, ends: Any) -> Any:
    """Where words begin, ascending: with a space between two bytes that are none, and each stretch.

    `content` is stretches one after the other, `ends` the byte behind each; empty ones allowed.
    """
    space = np.zeros(256, bool)
    space[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
    letters = np.frombuffer(content, np.uint8)
    begins = np.zeros(len(letters) + 1, bool)
    is_space = space[letters]
    begins[1:-2] = (letters[1:-1] == 32) & ~is_space[:-2] & ~is_space[2:]
    begins[ends[ends > 0] - 1] = False
    begins[ends] = True
    begins[0] = True
    return np.flatnonzero(begins[:-1])


def begins_words_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a space between characters that are none always begins a word of its own.

    Known of byte-level BPE with a splitting pattern before it, and at most NFC before that. Added
    tokens that take the spaces beside them, or that hold one, speak against it. Then texts with a
    space in the middle have to split as their halves do.
    """
    from tokenizers.models import BPE
    from tokenizers.normalizers import NFC

    if not tokenizer.is_fast:
        return False
    backend = tokenizer.backend_tokenizer
    model, splitter = backend.model, backend.pre_tokenizer
    if splitter is None or not isinstance(model, BPE):
        return False
    if not isinstance(backend.normalizer, NFC | None):
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

    def split(text: str) -> list[str]:
        return [word for word, _ in splitter.pre_tokenize_str(text)]

    before = [*_NEIGHBOURS, *(f"a{one}" for one in _NEIGHBOURS), "\n.", "a's", "12"]
    behind = [*_NEIGHBOURS, *(f"{one}a" for one in _NEIGHBOURS), ".\n", "'s a", "12"]
    halves = {text: split(text) for text in (*before, *(f" {one}" for one in behind))}
    return all(
        split(f"{left} {right}") == halves[left] + halves[f" {right}"]
        for left, right in product(before, behind)
    )


_NEIGHBOURS = "aZé1٣一あ.,'-(\"_/’。😀\u0301"


class TokenCache:
    """A table from words, as bytes of a text, to ids, asked for whole arrays of words.

    A word is known by two sums of its bytes, each times a random 64-bit number for its place, so
    two words are taken for one with a chance below 2^-100. The table is one of open addressing.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sums = np.zeros((2, 1024), np.uint64)
        self._starts = np.zeros(1025, np.int64)
        self._ids = np.zeros(4096, np.int32)
        self._slots = np.full(4096, -1, np.int32)

    @property
    def is_full(self) -> bool:
        """Whether it is time to begin with an empty one."""
        return self._count > MOST_WORDS or int(self._starts[self._count]) > MOST_IDS

    def find(self, sums: Any) -> Any:
        """The number of each word, of which `sum_words` gave the sums; -1 where it is not known."""
        first, second = sums
        mask = np.uint64(len(self._slots) - 1)
        places = (first >> _HIGH_BITS) & mask
        found = np.full(len(first), -1, np.int64)
        waiting = np.arange(len(first))
        while len(waiting):
            numbers = self._slots[places]
            is_hit = (numbers >= 0) & (self._sums[0][numbers] == first[waiting])
            is_hit &= self._sums[1][numbers] == second[waiting]
            found[waiting[is_hit]] = numbers[is_hit]
            is_open = (numbers >= 0) & ~is_hit
            waiting, places = waiting[is_open], (places[is_open] + np.uint64(1)) & mask
        return found

    def add(self, words: Sequence[str], ids: Any, counts: Any) -> None:
        """Takes in words that are not known, the ids of all of them and how many each has."""
        encoded = [_bytes(word) for word in words]
        lengths = np.array([*map(len, encoded)], np.int64)
        sums = sum_words(b"".join(encoded), np.cumsum(lengths) - lengths)
        first, count = self._count, self._count + len(words)
        num_ids = int(self._starts[first])
        if count >= len(self._sums[0]):
            self._sums = np.pad(self._sums, ((0, 0), (0, count)))
            self._starts = np.pad(self._starts, (0, count))
        if num_ids + len(ids) > len(self._ids):
            self._ids = np.pad(self._ids, (0, num_ids + len(ids)))
        self._sums[:, first:count] = sums
        self._ids[num_ids : num_ids + len(ids)] = ids
        self._starts[first + 1 : count + 1] = num_ids + np.cumsum(counts, dtype=np.int64)
        if 3 * count > len(self._slots):
            self._slots = np.full(1 << (6 * count).bit_length(), -1, np.int32)
            first = 0
        slots, mask = self._slots, len(self._slots) - 1
        places = (self._sums[0][first:count] >> _HIGH_BITS).tolist()
        for number, place in enumerate(places, first):
            place &= mask
            while slots[place] >= 0:
                place = (place + 1) & mask
            slots[place] = number
        self._count = count

    def ids_of(self, numbers: Any) -> tuple[Any, Any]:
        """The ids of words, one after the other, and where those of each begin; the end is last.

        A word of number -1 gives none.
        """
        counts = self._starts[numbers + 1] - self._starts[numbers]
        counts[numbers < 0] = 0
        begins = np.concatenate([[0], np.cumsum(counts)])
        shift = np.repeat(self._starts[numbers] - begins[:-1], counts)
        return self._ids[shift + np.arange(begins[-1])], begins


_HIGH_BITS = np.uint64(40)
"""Shifts a sum so that the bits are left that depend on all bytes."""


def sum_words(content: bytes, starts: Any) -> Any:
    """The two sums of each word; those of words over `LONGEST_WORD` bytes mean nothing."""
    if not len(starts):
        return np.zeros((2, 0), np.uint64)
    lengths = np.diff(np.append(starts, len(content)))
    places = np.arange(len(content)) - np.repeat(starts, lengths)
    np.minimum(places, LONGEST_WORD - 1, out=places)
    letters = np.frombuffer(content, np.uint8).astype(np.uint64) + np.uint64(1)
    return np.stack([np.add.reduceat(letters * some[places], starts) for some in _factors()])


@cache
def _factors() -> Any:
    chance = np.random.default_rng(20240229)
    odd = chance.integers(1 << 63, size=(2, LONGEST_WORD), dtype=np.uint64) * np.uint64(2)
    return odd + np.uint64(1)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")
