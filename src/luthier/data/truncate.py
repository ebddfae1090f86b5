"""how a row that is too long is cut: what is kept of each part, and what is never cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from luthier.errors import TemplateError
from luthier.records import BEHIND, Conversation, Piece, Turn

_MARK = "\ue0f1\ue0f2\ue0f1"
"""Characters for private use, set behind a content to see what the template writes there."""

Render: TypeAlias = Callable[[Conversation], list[Turn]]


def share_room(num_source: int, num_target: int, room: int) -> tuple[int, int]:
    """How many tokens of a prompt and its answer are kept where both have `room`.

    A short answer (under half the room) is kept whole, then a short prompt is; else both are cut
    in proportion.
    """
    if 2 * num_target < room:
        most = room
    elif 2 * num_source < room:
        most = room - num_source
    else:
        most = int(room * (num_target / (num_source + num_target)))
    kept = min(most, num_target)
    return min(max(room - kept, 0), num_source), kept


def share_above(num_source: int, num_target: int, least: int, room: int) -> tuple[int, int] | None:
    """`share_room`, with at least so many for the prompt and one for the answer, or None."""
    one = min(num_target, 1)
    if least + one > room:
        return None
    kept, num_answered = share_room(num_source, num_target, room)
    kept = max(kept, least)
    num_answered = max(min(num_answered, room - kept), one)
    return min(kept, room - num_answered), num_answered


def count_fitting(conversation: Conversation, lengths: Sequence[int], room: int) -> int:
    """How many turns make the next part: at least one, at most what fits, up to a question."""
    num_fitting, total = 0, 0
    for length in lengths:
        total += length
        if total > room:
            break
        num_fitting += 1
    messages = conversation.messages
    for count in range(num_fitting, 0, -1):
        if 2 * count == len(messages) or messages[2 * count].role == "user":
            return count
    return max(num_fitting, 1)


def find_uncut(
    conversation: Conversation, at: int, render: Render
) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The pieces before and behind the content of a turn's question, in its prompt, never cut.

    The turns are rendered with a mark behind the question; `at` counts from the last, which is -1.
    Where the template does not show the mark, nothing is known.
    """
    messages = list(conversation.messages)
    content = messages[2 * at].content
    messages[2 * at] = replace(messages[2 * at], content=content + _MARK)
    try:
        pieces = render(replace(conversation, messages=tuple(messages)))[at].prompt
    except (TemplateError, IndexError):
        return (), ()
    for number in range(len(pieces) - 1, -1, -1):
        piece = pieces[number]
        if isinstance(piece.content, str) and _MARK in piece.content:
            before, _, tail = piece.content.rpartition(_MARK)
            shown = next(
                (one for one in (content, content.strip()) if one and before.endswith(one)), ""
            )
            head = before[: len(before) - len(shown)] if shown else ""
            start = [replace(piece, content=head)] if head else []
            end = [replace(piece, content=tail, behind=before[-BEHIND:])] if tail else []
            return (*pieces[:number], *start), (*end, *pieces[number + 1 :])
    return (), ()
