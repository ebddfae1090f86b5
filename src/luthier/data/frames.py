"""what of a rendered prompt frames its last question and is never cut: headers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from luthier.errors import TemplateError
from luthier.records import BEHIND, Conversation, Piece, Turn

_MARK = "\ue0f1\ue0f2\ue0f1"
"""Characters for private use, set behind a content to see what the template writes there."""

Render = Callable[[Conversation], list[Turn]]


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the content of a prompt's last question."""

    head: tuple[Piece, ...] = ()
    tail: tuple[Piece, ...] = ()


def find_frame(conversation: Conversation, at: int, render: Render) -> Frame:
    """The frame of the prompt of one turn.

    The turns are rendered with a mark behind its question. Where the template does not show the
    mark, nothing is known of the frame, and it is empty.

    Args:
        conversation: one that can be rendered.
        at: the turn, counted from the last one, which is -1.
        render: gives the turns.
    """
    messages = list(conversation.messages)
    question = messages[2 * at]
    messages[2 * at] = replace(question, content=question.content + _MARK)
    try:
        pieces = render(replace(conversation, messages=tuple(messages)))[at].prompt
    except (TemplateError, IndexError):
        return Frame()
    return _frame(pieces, question.content)


def _frame(pieces: Sequence[Piece], content: str) -> Frame:
    """What stands before `content`, marked, and what stands behind."""
    for at in range(len(pieces) - 1, -1, -1):
        text = pieces[at].content
        if isinstance(text, str) and _MARK in text:
            before, _, tail = text.rpartition(_MARK)
            shown = next(
                (one for one in (content, content.strip()) if one and before.endswith(one)), ""
            )
            head = before[: len(before) - len(shown)] if shown else ""
            start = [replace(pieces[at], content=head)] if head else []
            end = [replace(pieces[at], content=tail, behind=before[-BEHIND:])] if tail else []
            return Frame((*pieces[:at], *start), (*end, *pieces[at + 1 :]))
    return Frame()
