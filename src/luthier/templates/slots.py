"""text with a hole for the content, between tokens."""

from __future__ import annotations

import json
from typing import TypeAlias

from luthier.records import Special, Token

CONTENT = "{{content}}"
"""The hole. Only the first one of a text is filled; the value is inserted as it is."""

Part: TypeAlias = str | Special | Token
Slots: TypeAlias = tuple[Part, ...]


def has_hole(slots: Slots) -> bool:
    """Whether some text of `slots` takes the content."""
    return any(isinstance(slot, str) and CONTENT in slot for slot in slots)


def fill(slots: Slots, content: str = "") -> list[Part]:
    """The parts with `content` in the hole, in order; empty texts are left out."""
    filled = [
        slot.replace(CONTENT, content, 1) if isinstance(slot, str) else slot for slot in slots
    ]
    return [part for part in filled if part != ""]


def as_text(part: Part, bos_token: str = "", eos_token: str = "") -> str:
    """A part as it stands in a rendered text."""
    if isinstance(part, str):
        return part
    if isinstance(part, Token):
        return part.text
    return bos_token if part is Special.BOS else eos_token


def quote(text: str) -> str:
    """`text` as a string literal of jinja."""
    return json.dumps(text, ensure_ascii=False)


def as_expression(slots: Slots, content: str = "content") -> str:
    """A jinja expression that gives the text of `slots`.

    Args:
        slots: what is rendered.
        content: the jinja expression that fills the hole.
    """
    terms: list[str] = []
    for slot in slots:
        if isinstance(slot, Special):
            terms.append(slot.value)
        elif isinstance(slot, Token):
            terms.append(quote(slot.text))
        else:
            before, hole, after = slot.partition(CONTENT)
            terms += [quote(before)] if before else []
            terms += [content] if hole else []
            terms += [quote(after)] if after else []
    return " ~ ".join(terms) or '""'
