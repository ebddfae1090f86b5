"""A model's source -> its tokenizer, with the user's new tokens; texts -> one of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from weakref import WeakKeyDictionary

from ruamel.yaml import YAML, YAMLError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from luthier import console
from luthier.arguments.model import ModelArguments
from luthier.errors import DataError, ModelError
from luthier.modeling.quirks import mend_gguf_tokenizer, mend_pad
from luthier.modeling.source import fetch_model, hub_options, unreadable
from luthier.templates.jinja import write_chat_template
from luthier.templates.template import TEMPLATES

_new_tokens: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, ...]] = WeakKeyDictionary()


def load_tokenizer(
    model_args: ModelArguments, *, min_length: int | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with the tokens to add; a ModelError where none can be read.

    `model_max_length` is raised to `min_length` (`cutoff_len`), never lowered.
    """
    name = str(model_args.model_name_or_path)
    source = fetch_model(name)
    gguf = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.path,
            split_special_tokens=False,  # contents are split where rows are encoded
            padding_side="right",
            **gguf,
            **hub_options(model_args),
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as problem:
        raise unreadable(name, "tokenizer", problem) from problem
    if source.gguf_file:
        mend_gguf_tokenizer(tokenizer, Path(source.path) / source.gguf_file)
    mend_pad(tokenizer)
    if min_length is not None and tokenizer.model_max_length < min_length:
        tokenizer.model_max_length = min_length
    _new_tokens[tokenizer] = _add_tokens(tokenizer, model_args)
    return tokenizer


def new_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens of `add_tokens` and its kin that the tokenizer did not have on disk."""
    return _new_tokens.get(tokenizer, ())


def token_descriptions(model_args: ModelArguments) -> dict[str, str]:
    """What `new_special_tokens_config` says: token -> description; empty when it is unset."""
    if model_args.new_special_tokens_config is None:
        return {}
    file = Path(model_args.new_special_tokens_config).expanduser()
    try:
        read = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as problem:
        raise ModelError(
            f"new_special_tokens_config: {file} cannot be read: {problem}"
        ) from problem
    if not isinstance(read, dict) or not all(
        isinstance(part, str) for pair in read.items() for part in pair
    ):
        raise ModelError(
            f"new_special_tokens_config: {file} is no mapping of texts. Write one "
            '`"<token>": what it stands for` a line.'
        )
    return read


def _add_tokens(tokenizer: PreTrainedTokenizerBase, model_args: ModelArguments) -> tuple[str, ...]:
    special = tuple(token_descriptions(model_args)) or model_args.add_special_tokens
    known = tokenizer.get_vocab() if special or model_args.add_tokens else {}
    added = []
    for tokens, is_special in ((model_args.add_tokens, False), (special, True)):
        # normalisers of some tokenizers set a space before a text, and would before the token
        tokenizer.add_tokens(
            [AddedToken(one, special=is_special, normalized=False) for one in tokens]
        )
        added += [token for token in tokens if token not in known and token not in added]
    for token in (*model_args.add_tokens, *special):
        number = tokenizer.convert_tokens_to_ids(token)
        for text in (f"{token}a", f"a{token}a", f"a {token} a", f"a\n{token}\n"):
            if number not in tokenizer(text)["input_ids"]:
                raise ModelError(
                    f"add_tokens, add_special_tokens: the token {token!r} is not found in the text "
                    f"{text!r}; this tokenizer reads {tokenizer.tokenize(text)}. Another token, or "
                    "how the model's own tokenizer.json describes this one, stands before it: "
                    "choose other letters."
                )
    if added:
        console.info(f"new tokens: {', '.join(added)}")
    return tuple(added)


EOS, PAD = "<|endoftext|>", "<|pad|>"
SPECIAL_TOKENS = (EOS, PAD, "<|im_start|>", "<|im_end|>")

LEAST = 256 + len(SPECIAL_TOKENS)
"""The bytes, of which any text can be made, and the special tokens."""

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What no token reaches across: the pattern of Qwen2's tokenizer, each digit alone."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer that any text goes through and comes back from, learned from each of the texts.

    It has at most `vocab_size` tokens, special ones and the 256 bytes included. Without any text it
    is a DataError.
    """
    assert vocab_size >= LEAST, vocab_size
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    is_empty = True

    def seen() -> Iterable[str]:
        nonlocal is_empty
        for text in texts:
            is_empty = False
            yield text

    tokenizer.train_from_iterator(seen(), trainer)
    if is_empty:
        raise DataError("there is no text to learn a tokenizer from.")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=list(SPECIAL_TOKENS[2:]),
        chat_template=write_chat_template(TEMPLATES.get("chatml")),
        clean_up_tokenization_spaces=False,
    )
