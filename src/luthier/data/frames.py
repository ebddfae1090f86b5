"""what of a rendered turn frames a content and is never cut: headers, and what ends an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from luthier.errors import TemplateError
from luthier.records import Conversation, Message, Piece, Turn

_MARK = "\ue0f1\ue0f2\ue0f1"
"""Characters for private use, set behind every content to see what the template writes there."""

Render = Callable[[Conversation], list[Turn]]


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the content of a prompt's last question, or of an answer."""

    head: tuple[Piece, ...] = ()
    tail: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Framed:
    """A prompt or an answer, and its frame."""

    pieces: tuple[Piece, ...]
    frame: Frame

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)


def find_frames(conversation: Conversation, render: Render) -> list[tuple[Framed, Framed]]:
    """The turns of a conversation, prompt and answer of each with its frame.

    They are rendered once more with a mark behind every content. Calls of tools are left alone;
    they end as other answers do. Where a template does not show the mark, nothing is known of the
    frame, and it is empty.

    Args:
        conversation: one that can be rendered.
        render: gives its turns.
    """
    turns = render(conversation)
    marked = replace(conversation, messages=tuple(map(_mark, conversation.messages)))
    try:
        shown = render(marked)
    except TemplateError:
        shown = []
    if len(shown) != len(turns):
        shown = turns
    messages = conversation.messages
    contents = [one.content for one in messages[len(messages) - 2 * len(turns) :]]
    framed = []
    for at, (turn, other) in enumerate(zip(turns, shown, strict=True)):
        question, answer = contents[2 * at], contents[2 * at + 1]
        prompt = Framed(turn.prompt, _frame(other.prompt, question))
        end = _frame(other.answer, answer)
        if not end.tail:
            end = Frame((), _usual_end(turn.answer, render))
        framed.append((prompt, Framed(turn.answer, end)))
    return framed


def _mark(message: Message) -> Message:
    if message.role == "function":
        return message
    return replace(message, content=message.content + _MARK)


def _frame(pieces: Sequence[Piece], content: str) -> Frame:
    """What stands before `content`, marked, and what stands behind."""
    for at in range(len(pieces) - 1, -1, -1):
        text = pieces[at].content
        if isinstance(text, str) and _MARK in text:
            before, _, behind = text.rpartition(_MARK)
            before = before.replace(_MARK, "")
            shown = next(
                (one for one in (content, content.strip()) if one and before.endswith(one)), ""
            )
            head = before[: len(before) - len(shown)] if shown else ""
            start = [replace(pieces[at], content=head)] if head else []
            end = [replace(pieces[at], content=behind)] if behind else []
            return Frame((*map(_unmarked, pieces[:at]), *start), (*end, *pieces[at + 1 :]))
    return Frame()


def _unmarked(piece: Piece) -> Piece:
    text = piece.content
    return replace(piece, content=text.replace(_MARK, "")) if isinstance(text, str) else piece


def _usual_end(pieces: Sequence[Piece], render: Render) -> tuple[Piece, ...]:
    """How a plain answer ends, where these pieces end so."""
    probe = Conversation((Message("user", "question"), Message("assistant", "answer" + _MARK)))
    try:
        tail = _frame(render(probe)[-1].answer, "answer").tail
    except TemplateError:
        return ()
    if not tail or not pieces:
        return ()
    if isinstance(tail[0].content, str):
        at = len(pieces) - len(tail)
        text = pieces[at].content if at >= 0 else ""
        fits = isinstance(text, str) and text.endswith(tail[0].content)
        return tail if fits and tuple(pieces[at + 1 :]) == tail[1:] else ()
    return tail if tuple(pieces[len(pieces) - len(tail) :]) == tail else ()
