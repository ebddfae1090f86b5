"""texts -> token ids, each word tokenised once."""

from __future__ import annotations

import copy
import json
import re
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING, Any, TypeAlias
from unicodedata import is_normalized

from luthier.data.vocabulary import LONGEST, Vocabulary, sum_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Ids: TypeAlias = array[int]
else:
    Ids = array

TYPECODE = "i"
"""Token ids are 32-bit integers here as in the tables that they are written to."""

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
        self._known: Vocabulary | None = None
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
            self._stood_for = self._add_stand_ins(self.marks)
        self._is_by_word = begins_words_at_spaces(self.tokenizer)
        if self._is_by_word:
            self._is_normalising = self.tokenizer.backend_tokenizer.normalizer is not None
            self._read_added_tokens()

    def _add_stand_ins(self, marks: ContentMarks) -> dict[int, int]:
        """A tokenizer that splits special tokens and knows the stand-ins: whose each one is."""
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
        return dict(zip(numbers, (at for at, _ in marks.special.values()), strict=True))

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
        found = [array(TYPECODE, ids) for ids in encoded["input_ids"]]
        if self._stood_for:
            real = self._stood_for
            found = [array(TYPECODE, [real.get(one, one) for one in ids]) for ids in found]
        return found

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

    def _read_added_tokens(self) -> None:
        added = self.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        splits = self.tokenizer.split_special_tokens
        added = {at: token for at, token in added.items() if not (splits and token.special)}
        self._added = {token.content: self._stood_for.get(at, at) for at, token in added.items()}
        for is_normalised in (False, True):
            texts = [one.content for one in added.values() if one.normalized is is_normalised]
            if texts:
                longest_first = sorted(texts, key=len, reverse=True)
                either = "|".join(map(re.escape, longest_first))
                self._added_patterns.append(re.compile(f"({either})"))

    def _encode_by_word(self, texts: Sequence[str]) -> list[Ids]:
        import numpy

        if self._known is None or self._known.is_full:
            self._known = Vocabulary()
            self._known.add(list(self._added), list(self._added.values()), [1] * len(self._added))
        parts = [self._stretches(text) for text in texts]
        stretches = [one for some in parts for one in some]
        content = "".join(stretches).encode("utf-8", errors="surrogatepass")
        lengths = [len(one) if one.isascii() else _size(one) for one in stretches]
        ends = numpy.cumsum(lengths, dtype=numpy.int64)
        words = cut_words(content, ends)
        sums = sum_words(content, words)
        is_kept = numpy.diff(numpy.append(words, len(content))) <= LONGEST
        numbers = self._known.find(sums)
        new = numpy.flatnonzero((numbers < 0) & is_kept)
        if len(new):
            _, firsts = numpy.unique(sums[0][new], return_index=True)
            texts_of_new = _texts(content, words, new[firsts])
            self._known.add(texts_of_new, *self._encode_words(texts_of_new))
            numbers[new] = self._known.find(sums[:, new])
        ids, starts = self._known.ids_of(numbers)
        of_text = numpy.concatenate([[0], ends])[list(accumulate(map(len, parts), initial=0))]
        at = starts[numpy.searchsorted(words, of_text)].tolist()
        found = [array(TYPECODE, ids[a:b].tobytes()) for a, b in pairwise(at)]
        odd = {*(numpy.searchsorted(of_text, words[~is_kept], "right") - 1).tolist()}
        odd |= {at for at, text in enumerate(texts) if not text.isascii() and self._is_odd(text)}
        if odd:
            whole = self._encode_whole([texts[at] for at in odd])
            for at, one in zip(odd, whole, strict=True):
                found[at] = one
        return found

    def _is_odd(self, text: str) -> bool:
        """Whether a text has to be tokenised as a whole."""
        if self._is_normalising and not is_normalized("NFC", text):
            return True
        return bool(_WIDE_SPACE.search(text) and _BESIDE_WIDE_SPACE.search(text))

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
        import numpy

        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        calls = [words[at : at + _WORDS_A_CALL] for at in range(0, len(words), _WORDS_A_CALL)]
        encodings = backend.encode_batch(calls, is_pretokenized=True, add_special_tokens=False)
        counts = [
            numpy.bincount(numpy.array(encoding.word_ids, int), minlength=len(call))
            for call, encoding in zip(calls, encodings, strict=True)
        ]
        ids = [numpy.array(encoding.ids, numpy.int32) for encoding in encodings]
        return numpy.concatenate(ids), numpy.concatenate(counts)


def cut_words(content: bytes, ends: Any) -> Any:
    """Where words begin: with a space between two bytes that are none, and with each stretch.

    Args:
        content: stretches one after the other.
        ends: the byte behind each, ascending; empty ones allowed.

    Returns:
        Ascending positions in `content`.
    """
    import numpy

    space = numpy.zeros(256, bool)
    space[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
    letters = numpy.frombuffer(content, numpy.uint8)
    begins = numpy.zeros(len(letters) + 1, bool)
    is_space = space[letters]
    begins[1:-2] = (letters[1:-1] == 32) & ~is_space[:-2] & ~is_space[2:]
    begins[ends[ends > 0] - 1] = False
    begins[ends] = True
    begins[0] = True
    return numpy.flatnonzero(begins[:-1])


def _texts(content: bytes, words: Any, wanted: Any) -> list[str]:
    """The texts of the words of these numbers."""
    ends = [*words[1:].tolist(), len(content)]
    return [
        content[start : ends[number]].decode("utf-8", errors="surrogatepass")
        for number, start in zip(wanted.tolist(), words[wanted].tolist(), strict=True)
    ]


def _size(text: str) -> int:
    return len(text.encode("utf-8", errors="surrogatepass"))


def begins_words_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a space between characters that are none always begins a word of its own.

    Known of byte-level BPE with a splitting pattern before it, and at most NFC before that. Added
    tokens that take the spaces beside them, or that hold one, speak against it.
    """
    from tokenizers.models import BPE
    from tokenizers.normalizers import NFC

    if not tokenizer.is_fast:
        return False
    backend = tokenizer.backend_tokenizer
    model, splitter = backend.model, backend.pre_tokenizer
    if not isinstance(backend.normalizer, NFC | None) or not isinstance(model, BPE):
        return False
    if splitter is None:
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
    halves = {text: split(text) for text in (*before, *(f" {one}" for one in behind))}
    return all(
        split(f"{left} {right}") == halves[left] + halves[f" {right}"]
        for left, right in product(before, behind)
    )
