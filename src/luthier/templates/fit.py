"""the template of a run, and its tokenizer made to fit: EOS, PAD, stop words, chat template."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.errors import TemplateError
from luthier.records import Conversation, Message, Piece, Special
from luthier.templates.chat_template import (
    ChatTemplate,
    Renders,
    as_chat,
    as_chat_tools,
    first_difference,
    render_chat,
)
from luthier.templates.jinja import write_chat_template
from luthier.templates.template import CONTENT, TEMPLATES, Template, as_text
from luthier.templates.thinking import COMMON_WORDS, spoken
from luthier.templates.tool_format import TOOL_FORMATS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.arguments.data import DataArguments

_COMMON_EOS = "<|endoftext|>"
_TURNS, _SYSTEM = "several turns", "a system text"
_PARTS = (_TURNS, _SYSTEM, "tools", "a call of a tool", "a thought")
_TOOLS = (
    '[{"type": "function", "function": {"name": "find", "description": "Finds.", '
    '"parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}}]'
)


def choose_template(data_args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Renders:
    """The template that the arguments name, or the tokenizer's own chat template.

    Without a name and without a chat template on the tokenizer, `empty` is taken, and a line says
    so. Options make a changed copy; the registered template stays as it is, and a TemplateError
    says which of them it does not allow.
    """
    if data_args.template is None and tokenizer.chat_template:
        console.info("template: the tokenizer's own chat template (none is named)")
        if data_args.tool_format is not None:
            raise TemplateError(
                "tool_format needs a named template: the tokenizer's own chat template writes "
                "tools in its own way.\n  Set template too, or leave tool_format out."
            )
        return ChatTemplate(
            tokenizer,
            default_system=data_args.default_system or "",
            enable_thinking=data_args.enable_thinking,
            preserve_thinking=data_args.preserve_thinking,
        )
    if data_args.template is None:
        console.warn(
            "no template is named and the tokenizer has no chat template: `empty` is taken, which "
            "writes questions and answers one after the other. Name one with template: NAME."
        )
    template = find_template(data_args.template or "empty")
    if data_args.train_on_prompt and template.efficient_eos:
        raise TemplateError(
            f"train_on_prompt does not go with template {template.name!r}, whose answers are ended "
            "by the label before the next question.\n  Leave train_on_prompt out."
        )
    if data_args.tool_format is not None:
        template = with_tool_format(template, data_args.tool_format)
    changes: dict[str, Any] = {}
    if data_args.default_system is not None:
        changes["default_system"] = data_args.default_system
    if template.is_reasoning:
        changes["enable_thinking"] = data_args.enable_thinking
        changes["preserve_thinking"] = data_args.preserve_thinking
    return dataclasses.replace(template, **changes)


def find_template(name: str) -> Template:
    """The registered template of this name, under which several may stand."""
    return dataclasses.replace(TEMPLATES.get(name), name=name)


def with_tool_format(template: Template, name: str) -> Template:
    """`template` with another tool format; calls then stand in a plain answer's slots."""
    TOOL_FORMATS.get(name)
    plain = (CONTENT,) if template.efficient_eos else (CONTENT, Special.EOS)
    return dataclasses.replace(template, tool_format=name, function=plain)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What generation and the model need to know of a fitted tokenizer."""

    stop_token_ids: tuple[int, ...]  # the tokens that end an answer, EOS first
    notes: tuple[str, ...]  # what was changed and what was kept, one line each
    num_new_tokens: int
    """Tokens that the vocabulary did not have before. When there are any, the model's vocabulary
    must be resized."""


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, template: Renders | None) -> Fitted:
    """Sets EOS, PAD and the stop words on the tokenizer.

    With `replace_eos` the template's first stop word becomes EOS. A tokenizer without EOS gets
    `<|endoftext|>`, one without PAD pads with EOS. Stop words become special tokens. Without a
    template, for texts, only EOS and PAD are seen to. Fitting a tokenizer twice changes nothing
    more.

    Raises:
        TemplateError: if a stop word is not one token.
    """
    known = set(tokenizer.get_vocab())
    notes: list[str] = []
    before = tokenizer.eos_token
    wanted = before if tokenizer.eos_token_id is not None else _COMMON_EOS
    if isinstance(template, Template) and template.replace_eos:
        wanted = template.stop_words[0]
    if wanted != before:
        tokenizer.add_special_tokens({"eos_token": wanted})
        notes.append(f"EOS is {wanted!r} (was {before!r}).")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"PAD is EOS, {tokenizer.eos_token!r} (the tokenizer has none).")
    stop_words = template.stop_words if template else ()
    missing = [word for word in stop_words if word not in tokenizer.all_special_tokens]
    if missing:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": missing}, replace_extra_special_tokens=False
        )
        notes.append(f"stop words are special tokens now: {', '.join(missing)}.")
    vocabulary = tokenizer.get_vocab()
    new = sorted(vocabulary.keys() - known)
    if new:
        notes.append(
            f"{len(new)} new tokens{' of the template' if template else ''}: {', '.join(new)}. "
            "The model's vocabulary grows to hold them."
        )
    words = dict.fromkeys([str(tokenizer.eos_token), *stop_words])
    absent = [word for word in words if word not in vocabulary]
    if absent:
        raise TemplateError(
            f"stop words of {template.name if template else ''} that are not one token of this "
            f"tokenizer: {', '.join(map(repr, absent))}.\n"
            "  Choose the template that belongs to the model."
        )
    stop_ids = tuple(dict.fromkeys(vocabulary[word] for word in words))
    return Fitted(stop_ids, tuple(notes), len(new))


def fit_chat_template(
    tokenizer: PreTrainedTokenizerBase, template: Template, kinds: Collection[str] = ()
) -> str:
    """Gives the tokenizer the template's chat template, unless its own writes the same prompts.

    `kinds` is what the data holds, as `kind_of` says it; empty where that is not known.

    Returns:
        What was done, empty where nothing had to be.
    """
    ours = write_chat_template(template)
    if tokenizer.chat_template == ours:
        return ""
    if not tokenizer.chat_template:
        tokenizer.chat_template = ours
        return f"the chat template of {template.name!r} is saved with the tokenizer."
    reason = "."
    if not template.replace_chat_template:
        held = kinds or ("", _SYSTEM, "tools, a call of a tool")
        # how an earlier answer ends shows in the next prompt only, so that is tried in any case
        ending = f"{_TURNS}, {_SYSTEM}" if all(_SYSTEM in kind for kind in held) else _TURNS
        difference = _find_difference(tokenizer, template, dict.fromkeys((ending, *held)))
        if not difference:
            return (
                f"the tokenizer's own chat template writes prompts as {template.name!r} does and "
                "is kept."
            )
        reason = f", because it writes other prompts than those that are trained. {difference}"
    tokenizer.chat_template = ours
    return f"the tokenizer's chat template is replaced by that of {template.name!r}{reason}"


def find_alike(tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """A registered template that writes the prompts of the tokenizer's own chat template.

    Several turns, a system text and none are compared; tools too, where any template is alike.
    """
    plain = ("", f"{_TURNS}, {_SYSTEM}")
    alike = [
        template
        for template in (find_template(name) for name in TEMPLATES.names())
        if not _find_difference(tokenizer, template, plain)
    ]
    tools = ("tools, a call of a tool",)
    whole = [each for each in alike if not _find_difference(tokenizer, each, tools)]
    return next(iter([*whole, *alike]), None)


def find_other_ids(tokenizer: PreTrainedTokenizerBase, template: Template) -> str:
    """How a prompt's text departs from its pieces in tokens, or nothing.

    Pieces are read one by one. SentencePiece sets a space before each, other tokenizers join their
    ends; a server that reads the text of a chat template sends other tokens than were trained then.
    """
    probe = _make_probe(_TURNS, template)
    asked = dataclasses.replace(probe, messages=probe.messages[:-1])
    pieces = template.prompt(asked, probe.messages[-1])
    ours = [one for piece in pieces for one in _ids(tokenizer, piece)]
    theirs = _ids(tokenizer, Piece(_join(tokenizer, pieces)))
    if ours == theirs:
        return ""
    pairs = enumerate(zip(ours, theirs, strict=False))
    start = max(next((at for at, (one, other) in pairs if one != other), len(ours)) - 2, 0)
    trained, read = (
        " ".join(tokenizer.convert_ids_to_tokens(ids[start : start + 8])) for ids in (ours, theirs)
    )
    return (
        f"template {template.name!r} is read piece by piece; as one text this tokenizer reads it "
        f"otherwise:\n    trained: {trained}\n    as one : {read}\n"
        "  Leave template out to train on what apply_chat_template gives."
    )


def _ids(tokenizer: PreTrainedTokenizerBase, piece: Piece) -> list[int]:
    if isinstance(piece.content, str):
        return list(tokenizer(piece.content, add_special_tokens=False)["input_ids"])
    text = _join(tokenizer, [piece])
    return [tokenizer.convert_tokens_to_ids(text)] if text else []


def kind_of(conversation: Conversation, template: Template) -> str:
    """What a conversation holds beside questions and answers: `a system text, tools`."""
    messages = conversation.messages
    closing = {template.thought_words[1].strip(), COMMON_WORDS[1]}
    said = [spoken(message) for message in messages if message.role in ("assistant", "function")]
    holds = (
        sum(message.role == "user" for message in messages) > 1,
        bool(conversation.system),
        conversation.tools is not None,
        any(message.role == "function" for message in messages),
        any(word in text for text in said for word in closing),
    )
    return ", ".join(part for part, is_held in zip(_PARTS, holds, strict=True) if is_held)


def _make_probe(kind: str, template: Template) -> Conversation:
    turns, system, tools, call, thought = (part in kind.split(", ") for part in _PARTS)
    before = "thought".join(template.thought_words) if thought else ""
    messages = [Message("user", "question")]
    if call:
        messages.append(
            Message("function", '{"name": "find", "arguments": {"text": "a"}}', said=before)
        )
        messages.append(Message("observation", "found"))
    messages.append(Message("assistant", before + "answer"))
    if turns:
        messages.append(Message("user", "second question"))
        messages.append(Message("assistant", before + "second answer"))
    return Conversation(
        tuple(messages), system="system text" if system else None, tools=_TOOLS if tools else None
    )


def _find_difference(
    tokenizer: PreTrainedTokenizerBase, template: Template, kinds: Iterable[str]
) -> str:
    """How the tokenizer's chat template departs from `template`, or nothing.

    Every prompt of a conversation of each kind is written both ways.
    """
    for kind in kinds:
        what = f"a conversation with {kind}" if kind else "a question"
        probe = _make_probe(kind, template)
        for end in range(1, len(probe.messages), 2):
            asked = dataclasses.replace(probe, messages=probe.messages[:end])
            text = _join(tokenizer, template.prompt(asked, probe.messages[end]))
            try:
                theirs = render_chat(
                    tokenizer,
                    as_chat(asked, template.thought_words, template.tool_call_words),
                    as_chat_tools(asked.tools),
                    is_prompt=True,
                )
            except TemplateError as error:
                return f"On {what}, {str(error).splitlines()[0]}"
            if theirs != text:
                names = ("trained", "tokenizer's")
                return f"On {what} they part at " + first_difference(text, theirs, names)
    return ""


def _join(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[Piece]) -> str:
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    return "".join(as_text(piece.content, bos, eos) for piece in pieces)
