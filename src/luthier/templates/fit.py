"""A tokenizer made to fit a template: EOS, PAD, stop words, chat template."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from luthier.errors import TemplateError
from luthier.records import Conversation, Message, Piece
from luthier.templates.chat_messages import as_chat, as_chat_tools
from luthier.templates.chat_template import (
    ChatTemplate,
    Tokenizer,
    first_difference,
    render_chat,
    write_chat_template,
)
from luthier.templates.slots import as_text
from luthier.templates.template import Template

_COMMON_EOS = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What generation and the model need to know of a fitted tokenizer.

    Attributes:
        stop_token_ids: the tokens that end an answer, EOS first.
        notes: what was changed and what was kept, one line each.
        num_new_tokens: tokens that the vocabulary did not have before. When there are any, the
            model's vocabulary must be resized.
    """

    stop_token_ids: tuple[int, ...]
    notes: tuple[str, ...]
    num_new_tokens: int


def fit_tokenizer(tokenizer: Tokenizer, template: Template | ChatTemplate | None) -> Fitted:
    """Sets EOS, PAD, the stop words and the chat template on the tokenizer.

    With `replace_eos` the template's first stop word becomes EOS. A tokenizer without EOS gets
    `<|endoftext|>`, one without PAD pads with EOS. Stop words become special tokens. A chat
    template is written unless the tokenizer has one that renders what this template trains.
    Without a template, for texts, only EOS and PAD are seen to. Fitting a tokenizer twice changes
    nothing more.

    Raises:
        TemplateError: if a stop word is not one token.
    """
    known = set(tokenizer.get_vocab())
    notes: list[str] = []
    _set_eos(tokenizer, template, notes)
    stop_words = () if template is None else template.stop_words
    _add_stop_words(tokenizer, stop_words, notes)
    new = sorted(set(tokenizer.get_vocab()) - known)
    if new:
        notes.append(
            f"{len(new)} new tokens{' of the template' if template else ''}: {', '.join(new)}. "
            "The model's vocabulary grows to hold them."
        )
    if isinstance(template, Template):
        notes += _fit_chat_template(tokenizer, template)
    stop_ids = _find_stop_ids(tokenizer, stop_words, template.name if template else "")
    return Fitted(stop_ids, tuple(notes), len(new))


def _set_eos(
    tokenizer: Tokenizer, template: Template | ChatTemplate | None, notes: list[str]
) -> None:
    before = tokenizer.eos_token
    if isinstance(template, Template) and template.replace_eos:
        wanted: str | None = template.stop_words[0]
    else:
        wanted = _COMMON_EOS if tokenizer.eos_token_id is None else before
    if wanted != before:
        tokenizer.add_special_tokens({"eos_token": wanted})
        notes.append(f"EOS is {wanted!r} (was {before!r}).")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"PAD is EOS, {tokenizer.eos_token!r} (the tokenizer has none).")


def _add_stop_words(tokenizer: Tokenizer, stop_words: Sequence[str], notes: list[str]) -> None:
    missing = [word for word in stop_words if word not in tokenizer.all_special_tokens]
    if missing:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": missing}, replace_extra_special_tokens=False
        )
        notes.append(f"stop words are special tokens now: {', '.join(missing)}.")


def _find_stop_ids(
    tokenizer: Tokenizer, stop_words: Sequence[str], template: str
) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    words = dict.fromkeys([str(tokenizer.eos_token), *stop_words])
    absent = [word for word in words if word not in vocabulary]
    if absent:
        raise TemplateError(
            f"stop words of {template} that are not one token of this tokenizer: "
            f"{', '.join(map(repr, absent))}.\n"
            "  Choose the template that belongs to the model."
        )
    return tuple(dict.fromkeys(vocabulary[word] for word in words))


def _fit_chat_template(tokenizer: Tokenizer, template: Template) -> list[str]:
    if not tokenizer.chat_template:
        tokenizer.chat_template = write_chat_template(template)
        return [f"the chat template of {template.name!r} is saved with the tokenizer."]
    if tokenizer.chat_template == write_chat_template(template):
        return []
    if template.replace_chat_template:
        tokenizer.chat_template = write_chat_template(template)
        return [f"the tokenizer's chat template is replaced by that of {template.name!r}."]
    difference = find_difference(tokenizer, template)
    if not difference:
        return ["the tokenizer's own chat template renders what is trained and is kept."]
    tokenizer.chat_template = write_chat_template(template)
    return [
        f"the tokenizer's chat template is replaced by that of {template.name!r}, because it does "
        f"not render what is trained. {difference}"
    ]


def find_difference(tokenizer: Tokenizer, template: Template) -> str:
    """How the tokenizer's chat template departs from `template`, or nothing.

    Some conversations (several turns, a system text, tools) are rendered both ways, to the last
    answer and to the last question.
    """
    for what, probe in _PROBES.items():
        asked = dataclasses.replace(probe, messages=probe.messages[:-1])
        pieces = [piece for turn in template.turns(probe) for piece in (*turn.prompt, *turn.answer)]
        for shown, ours, is_prompt in (
            (probe, pieces, False),
            (asked, list(template.prompt(asked)), True),
        ):
            text = _join(tokenizer, ours)
            try:
                theirs = render_chat(
                    tokenizer,
                    as_chat(shown, template.thought_words, template.tool_call_words),
                    as_chat_tools(shown.tools),
                    is_prompt=is_prompt,
                )
            except TemplateError as error:
                return f"On {what}, {str(error).splitlines()[0]}"
            if theirs != text:
                names = ("trained", "tokenizer's")
                return f"On {what} they part at " + first_difference(text, theirs, names)
    return ""


def _join(tokenizer: Tokenizer, pieces: list[Piece]) -> str:
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    return "".join(as_text(piece.content, bos, eos) for piece in pieces)


_PROBES = {
    "one question and answer": Conversation(
        (Message("user", "question"), Message("assistant", "answer"))
    ),
    "two turns": Conversation(
        (
            Message("user", "question"),
            Message("assistant", "answer"),
            Message("user", "second question"),
            Message("assistant", "second answer"),
        )
    ),
    "a system text": Conversation(
        (Message("user", "question"), Message("assistant", "answer")), system="system text"
    ),
    "a call of a tool": Conversation(
        (
            Message("user", "question"),
            Message("function", '{"name": "find", "arguments": {"text": "a"}}'),
            Message("observation", "found"),
            Message("assistant", "answer"),
        ),
        tools=(
            '[{"type": "function", "function": {"name": "find", "description": "Finds.", '
            '"parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}}]'
        ),
    ),
}
