"""one row from the file to the tokens: conversation, pieces, what is learned, what is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from luthier.data.check import RowProblem
from luthier.data.encode import Encoder
from luthier.data.words import without_marks
from luthier.errors import TemplateError
from luthier.example import Example
from luthier.inspecting.view.pick import PickedRow
from luthier.records import IGNORE_INDEX, Conversation, Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_JOINED = 8
"""Tokens that may together be one character."""


@dataclass(frozen=True)
class ShownToken:
    """A token, or the few that make one character.

    Attributes:
        ids: its numbers.
        text: what it reads as.
        turn: the turn it stands in, from 1.
        is_answer: whether in that turn's answer.
        is_learned: whether it is predicted.
        is_special: whether it is a token of the vocabulary's own, such as an end of turn.
        is_cut: whether it had no room, so that training does not see it.
    """

    ids: tuple[int, ...]
    text: str
    turn: int
    is_answer: bool
    is_learned: bool = False
    is_special: bool = False
    is_cut: bool = False


@dataclass(frozen=True)
class ShownPiece:
    """A stretch that is tokenised on its own."""

    piece: Piece
    text: str
    turn: int
    is_answer: bool


@dataclass(frozen=True)
class ShownPart:
    """An example that a row gives.

    Attributes:
        tokens: all of the row's, cut ones included; its own where the row gives several.
        num_tokens: those that training sees.
        num_learned: those of them that are predicted.
        num_cut: those that it does not see.
    """

    tokens: Sequence[ShownToken]
    num_tokens: int
    num_learned: int
    num_cut: int


@dataclass
class ShownRow:
    """A row in all its forms.

    Attributes:
        picked: the row and its conversation.
        problem: why training leaves it out, whoever found it.
        pieces: what the template makes of it.
        parts: the examples that it gives; one without tokens to see when it is left out.
    """

    picked: PickedRow
    problem: RowProblem | None = None
    pieces: list[ShownPiece] = field(default_factory=list)
    parts: list[ShownPart] = field(default_factory=list)


def show_row(picked: PickedRow, encoder: Encoder) -> ShownRow:
    """Encodes a row as training does, and says of each token what becomes of it."""
    shown = ShownRow(picked, picked.problem)
    if picked.conversation is None:
        return shown
    (outcome,) = encoder.learn([picked.conversation])
    examples = [Example([], [])]
    if isinstance(outcome, list):
        examples = outcome
    elif isinstance(outcome, RowProblem):
        shown.problem = outcome
    else:
        shown.problem = RowProblem(picked.origin, "", outcome.reason, "")
    try:
        shown.pieces = list(_pieces(picked.conversation, encoder))
    except TemplateError:
        return shown  # the problem says so
    whole = list(_tokens_of(shown.pieces, encoder))
    for example in examples:
        tokens = _align(whole, example)
        num_cut = sum(one.is_cut for one in tokens)
        if len(examples) > 1:  # what is not in this part is in another
            tokens, num_cut = [one for one in tokens if not one.is_cut], example.num_cut
        tokens = list(_with_text(_mark_special(tokens, encoder.tokenizer), encoder.tokenizer))
        num_tokens = len(example.input_ids)
        shown.parts.append(ShownPart(tokens, num_tokens, example.num_units, num_cut))
    return shown


def _mark_special(
    tokens: Sequence[ShownToken], tokenizer: PreTrainedTokenizerBase
) -> list[ShownToken]:
    special = {*tokenizer.all_special_ids}
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [replace(one, is_special=one.ids[0] in special) for one in tokens]


def _pieces(conversation: Conversation, encoder: Encoder) -> Iterator[ShownPiece]:
    for number, turn in enumerate(encoder.turns(conversation), 1):
        for is_answer, side in ((False, turn.prompt), (True, turn.answer)):
            for piece in side:
                content = piece.content
                text = without_marks(content) if isinstance(content, str) else _name(content)
                yield ShownPiece(piece, text, number, is_answer)


def _name(content: object) -> str:
    return str(getattr(content, "text", None) or getattr(content, "name", content))


def _tokens_of(pieces: Sequence[ShownPiece], encoder: Encoder) -> Iterator[ShownToken]:
    ids = encoder.ids_of([one.piece for one in pieces])
    for piece, numbers in zip(pieces, ids, strict=True):
        for number in numbers:
            yield ShownToken((number,), "", piece.turn, piece.is_answer, is_cut=True)


def _align(whole: Sequence[ShownToken], example: Example) -> list[ShownToken]:
    """Every token of the row, those of the example marked as kept, and learned by their label.

    What the example has beside the pieces (the last EOS of some templates) stands where it is.
    """
    before, after = [one.ids[0] for one in whole], example.input_ids
    start = next(
        (at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]),
        min(len(before), len(after)),
    )
    matcher = SequenceMatcher(None, before[start:], after[start:], autojunk=False)
    found = [replace(one, is_cut=False) for one in whole[:start]]
    places = [*range(start)]
    for kind, low, high, first, last in matcher.get_opcodes():
        kept = range(start + first, start + last)
        if kind == "equal":
            found += [replace(one, is_cut=False) for one in whole[start + low : start + high]]
            places += kept
            continue
        found += whole[start + low : start + high]
        places += [-1] * (high - low)
        for place in kept:
            near = found[-1] if found else ShownToken((), "", 1, is_answer=False)
            found.append(replace(near, ids=(after[place],), is_cut=False))
            places.append(place)
    return [
        replace(one, is_learned=place > 0 and example.labels[place] != IGNORE_INDEX)
        for one, place in zip(found, places, strict=True)
    ]


def _with_text(
    tokens: Sequence[ShownToken], tokenizer: PreTrainedTokenizerBase
) -> Iterator[ShownToken]:
    """The tokens with what they read as; those that are one character together become one."""
    before: list[int] = []
    waiting: list[ShownToken] = []
    for at, token in enumerate(tokens):
        waiting.append(token)
        ids = [number for one in waiting for number in one.ids]
        text = _read(tokenizer, before, ids)
        following = tokens[at + 1] if at + 1 < len(tokens) else None
        is_open = text.endswith("\ufffd") and len(waiting) < MOST_JOINED
        if is_open and following is not None and _is_alike(token, following):
            continue
        yield replace(waiting[0], ids=tuple(ids), text=text)
        before, waiting = ids[-1:], []


def _read(tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int]) -> str:
    """The text of `ids` where they stand; alone, some tokenizers drop a space at the start."""
    head = str(tokenizer.decode(before)) if before else ""
    both = str(tokenizer.decode(before + ids))
    return both[len(head) :] if both.startswith(head) else str(tokenizer.decode(ids))


def _is_alike(one: ShownToken, other: ShownToken) -> bool:
    return replace(one, ids=()) == replace(other, ids=())
