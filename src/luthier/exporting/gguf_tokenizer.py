"""A tokenizer as llama.cpp names it in a GGUF file: tokens, their kinds, merges, how text is split.

Sources: the specification docs/gguf.md of ggml; src/llama-vocab.cpp and convert_hf_to_gguf.py of
llama.cpp, for the values of `tokenizer.ggml.pre`, the kinds of tokens, and what scores mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from luthier.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens (`llama_token_type`)."""

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
)
PATTERNS = {
    "llama-bpe": rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_ENDS}",
    "qwen2": rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_ENDS}",
    "tekken": _CASES % ("", "", r"\p{N}") + _ENDS,
    "gpt-4o": _CASES % (f"{_ENGLISH}?", f"{_ENGLISH}?", r"\p{N}{1,3}") + _ENDS,
}
"""`tokenizer.ggml.pre` -> the pattern that it stands for, of those with one of their own."""

TEXTS = (
    "The luthier's 12 violins cost 1,234.50 EUR: isn't that 3rd-hand?  I'LL see, WE'VE time.",
    "  two spaces\n\n\tand a tab\r\n   \n",
    "第三把小提琴 ½ éèê Größe ñandú naïve Ω≈ç√ 😀👍🏽 Ⅳ ١٢٣",
    "def f(x_1): return x_1**2  # café/naïve\n// path/to/FileName.TXT HTTPServer camelCase",
    "<|im_start|>user\nWho are you?<|im_end|>\n",
)
"""Texts by which ways of splitting are told from each other."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    model: Literal["gpt2", "llama"]  # byte-level BPE, or what SentencePiece makes
    pre: str  # how text is split before it
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]  # of `llama` only: the later a token is made, the lower
    adds_space: bool  # before a text
    adds_bos: bool
    adds_eos: bool

    def write(self, writer: Any) -> None:
        """Tells all of it to a GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.model == "llama":
            writer.add_add_space_prefix(self.adds_space)


def describe(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> Vocabulary:
    """The vocabulary of a fast BPE tokenizer, filled up to the rows of the embeddings.

    Raises:
        ModelError: if llama.cpp has no name for what it is.
    """
    if not tokenizer.is_fast:
        raise ModelError(_unknown("it has no tokenizer.json"))
    read = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = read["model"]["type"]
    if kind != "BPE":
        raise ModelError(_unknown(f"its tokenizer.json holds {kind}, no BPE"))
    is_bytes = "ByteLevel" in json.dumps([read["pre_tokenizer"], read["decoder"]])
    vocab = read["model"]["vocab"]
    names = {number: token for token, number in vocab.items()}
    added = {each["id"]: each for each in read["added_tokens"]}
    names |= {number: each["content"] for number, each in added.items()}
    unknown = read["model"].get("unk_token")
    tokens, kinds = [], []
    for number in range(max(num_rows, len(tokenizer))):
        token = names.get(number)
        if token is None:
            tokens.append(f"[PAD{number}]")
            kinds.append(UNUSED)
            continue
        if number in added and not added[number]["special"] and not is_bytes:
            token = token.replace(SPACE, " ")  # as it stands in a text
        tokens.append(token)
        kinds.append(_kind(token, added.get(number), unknown, is_bytes=is_bytes))
    pairs = [
        tuple(each.split(" ")) if isinstance(each, str) else tuple(each)
        for each in read["model"]["merges"]
    ]
    letters = tokenizer("a", add_special_tokens=True)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return Vocabulary(
        model="gpt2" if is_bytes else "llama",
        pre=_name_of_splitting(tokenizer) if is_bytes else "default",
        tokens=tokens,
        kinds=kinds,
        merges=[" ".join(pair) for pair in pairs],
        scores=[] if is_bytes else _scores(tokens, pairs),
        adds_space=str(tokenizer.convert_ids_to_tokens(plain[0])).startswith(SPACE),
        adds_bos=adds_bos(tokenizer),
        adds_eos=letters[-1] == tokenizer.eos_token_id != plain[-1],
    )


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer sets BOS before a text by itself."""
    first: int = tokenizer("a", add_special_tokens=True)["input_ids"][0]
    return first == int(-1 if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def _kind(token: str, added: dict[str, Any] | None, unknown: str | None, *, is_bytes: bool) -> int:
    if not is_bytes and token == unknown:
        return UNKNOWN
    if not is_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return BYTE
    if added is not None:
        return CONTROL if added["special"] else USER_DEFINED
    return NORMAL


def _scores(tokens: Sequence[str], pairs: Sequence[tuple[str, ...]]) -> list[float]:
    """The pair that is merged first has the highest score; what no merge makes stands behind."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(pairs) + number)) for number, token in enumerate(tokens)]


def _name_of_splitting(tokenizer: PreTrainedTokenizerBase) -> str:
    """`tokenizer.ggml.pre`: the first known way that splits `TEXTS` as the tokenizer does."""
    own = tokenizer.backend_tokenizer.pre_tokenizer
    for name, splitting in _splittings().items():
        if all(own.pre_tokenize_str(text) == splitting.pre_tokenize_str(text) for text in TEXTS):
            return name
    raise ModelError(
        _unknown(
            f"it splits text in none of the ways that are known here: {', '.join(_splittings())}"
        )
    )


@cache
def _splittings() -> dict[str, Any]:
    byte_level: Callable[..., Any] = pre_tokenizers.ByteLevel
    plain = byte_level(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {
        "gpt-2": plain,
        "smollm": pre_tokenizers.Sequence([digits, plain]),
    } | {
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                byte_level(add_prefix_space=False, use_regex=False),
            ]
        )
        for name, pattern in PATTERNS.items()
    }


def _unknown(why: str) -> str:
    return (
        f"gguf: llama.cpp has no name for this tokenizer: {why}. Export without gguf, and convert "
        "the folder with llama.cpp's own convert_hf_to_gguf.py."
    )
