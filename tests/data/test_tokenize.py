import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from luthier.data import tokenize
from luthier.data.tokenize import TextTokenizer, begins_words_at_spaces
from tests import tiny

SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
                    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
PARTS = [" ", "  ", "\n", " \n", "\t", "\u00a0", "\u3000", "a", "Tell me", "glue's", "12", "é", "."]
PARTS += ["e\u0301", "小提琴", "😀", "...", "<|im_end|>", "<|im_end", "\x00", "\x1d", "maple,"]
TEXT = st.lists(st.sampled_from(PARTS), max_size=25).map("".join)


def make(split: str, normalizer: object = None) -> PreTrainedTokenizerFast:
    tokenizer = tiny.make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = SPLITS[split]
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("normalizer", [None, tokenizers.normalizers.NFC()])
def test_the_ids_are_those_of_the_tokenizer(split, normalizer):
    tokenizer = make(split, normalizer)
    texts = TextTokenizer(tokenizer)
    texts.encode(["warm the hide glue gently"])
    assert begins_words_at_spaces(tokenizer)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.one_of(TEXT, st.text(max_size=40)), max_size=6))
    def check(given_texts: list[str]) -> None:
        found = [ids.tolist() for ids in texts.encode(given_texts)]
        assert found == [tokenizer.encode(one, add_special_tokens=False) for one in given_texts]

    check()


def without(tokenizer: PreTrainedTokenizerFast, special: str) -> PreTrainedTokenizerFast:
    """The same tokenizer, to which `special` is a word like any other."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["added_tokens"] = [one for one in parts["added_tokens"] if one["content"] != special]
    backend = tokenizers.Tokenizer.from_str(json.dumps(parts))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


SENTENCEPIECE = [tiny.make_sentencepiece(prepend) for prepend in ("first", "always", "normal")]


@pytest.mark.parametrize(
    ("tokenizer", "start", "end"),
    [
        *(
            (make(split, tokenizers.normalizers.NFC()), *tiny.SPECIAL_TOKENS[1:])
            for split in SPLITS
        ),
        *((one, "<s>", "</s>") for one in SENTENCEPIECE),
    ],
)
def test_a_special_token_is_letters_in_contents_and_a_token_between_them(tokenizer, start, end):
    texts, expected = TextTokenizer(tokenizer, splits_special=True), without(tokenizer, end)
    assert texts.marks is not None
    mark = texts.marks.mark
    content = st.lists(st.sampled_from([*PARTS, "a", end, "\ue0f1\ue0f2"]), max_size=9).map("".join)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(content, max_size=4))
    def check(contents: list[str]) -> None:
        given_texts = [start.join(contents), start + start.join(contents), "".join(contents)]
        marked = [start.join(map(mark, contents)), start + start.join(map(mark, contents))]
        found = [ids.tolist() for ids in texts.encode([*marked, "".join(map(mark, contents))])]
        assert found == [expected.encode(one, add_special_tokens=False) for one in given_texts]

    check()
    (ids,) = texts.encode([mark(f"{start}{end}") + start + mark(f" {start}") + end])
    special = tokenizer.convert_tokens_to_ids([start, end])
    assert [one for one in ids if one in special] == special
    assert texts.encode([mark("<think>", ["<think>"])]) == texts.encode(["<think>"])


@pytest.mark.parametrize("tokenizer", [*SENTENCEPIECE, make("qwen")])
def test_a_text_behind_another_reads_as_it_does_there(tokenizer):
    texts, eos = TextTokenizer(tokenizer), tokenizer.eos_token
    heads = ["user", "a\n", f"{eos}", f"{eos}assistant\n", "glue ", "a.", "é"]
    tails = ["The neck", " The", "\n", "\n\nThe", ".", f"{eos}The", "小", "maple"]
    pairs = [(head, tail) for head in heads for tail in tails]

    found = texts.encode_behind(pairs)

    for (head, tail), ids in zip(pairs, found, strict=True):
        before = tokenizer.encode(head, add_special_tokens=False)
        both = tokenizer.encode(head + tail, add_special_tokens=False)
        if both[: len(before)] == before:  # else they would share a token
            assert ids.tolist() == both[len(before) :]
        assert tokenizer.decode(before + ids.tolist()) == tokenizer.decode(both)


def test_words_are_asked_for_once(tiny_tokenizer, monkeypatch):
    asked: list[str] = []
    encode = TextTokenizer._encode_words
    monkeypatch.setattr(
        TextTokenizer, "_encode_words", lambda self, new: asked.extend(new) or encode(self, new)
    )
    texts = TextTokenizer(tiny_tokenizer)

    texts.encode(["the neck of the violin", "the neck<|im_end|>"])
    texts.encode(["of the neck"])

    assert sorted(asked) == [" neck", " of", " the", " violin", "of", "the"]


def test_a_full_vocabulary_begins_anew(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize, "MOST_WORDS", 20)
    monkeypatch.setattr(tokenize, "_TEXTS_TOGETHER", 3)
    texts = TextTokenizer(tiny_tokenizer)
    given_texts = [f"word {n} and {n % 7} again" for n in range(200)]

    found = [ids.tolist() for ids in texts.encode(given_texts)]

    assert found == tiny_tokenizer(given_texts, add_special_tokens=False)["input_ids"]


def test_very_long_words_and_many_words_are_right(tiny_tokenizer):
    texts = TextTokenizer(tiny_tokenizer)
    given_texts = ["x" * 3000 + " and more", "小" * 900, " ".join(map(str, range(30_000))), ""]

    found = [ids.tolist() for ids in texts.encode(given_texts)]

    assert found == tiny_tokenizer(given_texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.add_tokens([tokenizers.AddedToken("glue", single_word=True)]),
        lambda one: one.add_tokens([tokenizers.AddedToken("glue", rstrip=True)]),
        lambda one: one.add_tokens(["hide glue"]),
        lambda one: setattr(
            one.backend_tokenizer, "pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="never")
        ),
        lambda one: setattr(
            one.backend_tokenizer,
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex("glue [a-z]+|."), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
        ),
        lambda one: setattr(
            one.backend_tokenizer, "normalizer", tokenizers.normalizers.Lowercase()
        ),
    ],
)
def test_tokenizers_of_another_kind_read_whole_texts(change):
    tokenizer = tiny.make_tokenizer()
    change(tokenizer)
    given_texts = ["warm the hide glue gently<|im_end|>", "glue  it.  glue gently glue"]

    found = [ids.tolist() for ids in TextTokenizer(tokenizer).encode(given_texts)]

    assert found == tokenizer(given_texts, add_special_tokens=False)["input_ids"]


def test_a_difference_that_the_first_texts_show_turns_it_off(monkeypatch):
    monkeypatch.setattr(tokenize, "begins_words_at_spaces", lambda tokenizer: True)
    tokenizer = tiny.make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    texts = TextTokenizer(tokenizer)
    given_texts = ["warm the hide glue gently, warm the hide glue"] * 3

    found = [ids.tolist() for ids in texts.encode(given_texts)]

    assert found == tokenizer(given_texts, add_special_tokens=False)["input_ids"]


class Letters(PreTrainedTokenizer):
    """Written in Python: each letter is a token."""

    vocab_size = 300

    def get_vocab(self) -> dict[str, int]:
        return {chr(number): number for number in range(300)} | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def test_a_tokenizer_written_in_python_splits_contents_alone():
    tokenizer = Letters(eos_token="</s>")
    texts = TextTokenizer(tokenizer, splits_special=True)
    assert texts.marks is not None

    (ids,) = texts.encode([texts.marks.mark("a</s>") + "</s>b"])

    assert ids.tolist() == [*map(ord, "a</s>"), tokenizer.eos_token_id, ord("b")]
