"""single rows from the file to the tokens, as training sees them: on a terminal or as a page."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from luthier.data.check import RowProblem, show_value
from luthier.data.reading import Batch, DatasetReader
from luthier.data.tokenize import without_marks
from luthier.errors import DataError, TemplateError
from luthier.example import Example, count_learned
from luthier.records import IGNORE_INDEX, Conversation, Feedback, Pair, Piece
from luthier.stages.conversing import Conversing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_JOINED = 8
"""Tokens that may together be one character."""

MOST_OF_ROW = 2000
"""Characters of a row's own text that are shown."""

OPEN, CLOSE = "⟦", "⟧"
CUT_OPEN, CUT_CLOSE = "✂{", "}"
BETWEEN = "·"
BREAK = "↵"


@dataclass(frozen=True)
class PickedRow:
    """A row, and what it says or why it says nothing."""

    dataset: str  # the data set's name
    origin: str  # the file and the line on which it starts
    values: Any  # what stands there; None where it could not be parsed
    record: Any = None  # what it says; None where there is a problem
    problem: RowProblem | None = None  # why training leaves it out


def pick_first(reader: DatasetReader, count: int) -> list[PickedRow]:
    """The first rows of a data set."""
    found: list[PickedRow] = []
    for batch in reader.batches():
        found += list(_rows(reader.name, batch))[: count - len(found)]
        if len(found) == count:
            break
    return found


def pick_by_chance(reader: DatasetReader, count: int, seed: int) -> list[PickedRow]:
    """Rows that are drawn from the whole data set, in its order; the same for the same seed."""
    chance = random.Random(seed)
    kept: list[tuple[int, PickedRow]] = []
    number = 0
    for batch in reader.batches():
        for row in _rows(reader.name, batch):
            if len(kept) < count:
                kept.append((number, row))
            elif (at := chance.randrange(number + 1)) < count:
                kept[at] = (number, row)
            number += 1
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])]


def pick_by_place(readers: Sequence[DatasetReader], places: Sequence[str]) -> list[PickedRow]:
    """The rows that start at `FILE:LINE`, where FILE may be the end of a longer path."""
    found: dict[str, PickedRow] = {}
    starts: dict[str, set[tuple[int, str]]] = {place: set() for place in places}
    wanted = [_parse(place) for place in places]
    for reader in readers:
        for batch in reader.batches():
            for row in _rows(reader.name, batch):
                file, _, line = row.origin.rpartition(":")
                for (end, number), place in zip(wanted, places, strict=True):
                    if place not in found and f"/{file}".endswith(end):
                        starts[place].add((abs(int(line) - number), row.origin))
                        if int(line) == number:
                            found[place] = row
    for place in places:
        if place not in found:
            near = [origin for _, origin in sorted(starts[place])]
            hint = f" The nearest: {', '.join(near[:3])}." if near else " No file ends so."
            raise DataError(f"--row {place}: no row of the data sets starts there.{hint}")
    return [found[place] for place in places]


def _rows(name: str, batch: Batch) -> Iterator[PickedRow]:
    records = dict(batch.records)
    problems = {problem.origin: problem for problem in batch.problems}
    for number, row in enumerate(batch.rows):
        if isinstance(row, RowProblem):
            yield PickedRow(name, row.origin, None, problem=row)
        else:
            origin = str(row.origin)
            record = records.get(number)
            problem = problems.get(origin) if record is None else None
            yield PickedRow(name, origin, row.values, record, problem)


def _parse(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    if not file or not line.isdecimal():
        raise DataError(f"--row {place}: a place is a file and a line, such as data/user.json:17.")
    return f"/{file.removeprefix('./')}", int(line)


@dataclass(frozen=True)
class ShownToken:
    """A token, or the few that make one character."""

    ids: tuple[int, ...]  # its numbers
    text: str  # what it reads as
    turn: int  # the turn it stands in, from 1
    is_answer: bool  # whether in that turn's answer
    is_learned: bool = False  # whether it is predicted
    # whether it is a token of the vocabulary's own, such as an end of turn
    is_special: bool = False
    is_cut: bool = False  # whether it had no room, so that training does not see it


@dataclass(frozen=True)
class ShownPiece:
    """A stretch that is tokenised on its own."""

    piece: Piece
    text: str
    turn: int
    is_answer: bool
    name: str = ""  # of the answer, where a row has judged ones

    @property
    def place(self) -> str:
        """The turn and the side of it."""
        return f"{self.turn} {(self.name or 'answer') if self.is_answer else 'prompt'}"


@dataclass(frozen=True)
class ShownPart:
    """An example that a row gives."""

    # all of the row's, cut ones included; its own where the row gives several
    tokens: Sequence[ShownToken]
    num_tokens: int  # those that training sees
    num_learned: int  # those of them that are predicted
    num_cut: int  # those that it does not see
    name: str = ""  # of the answer, where a row has judged ones

    def sides(self) -> Iterator[tuple[int, str, list[ShownToken]]]:
        """The turn's number, `prompt` or `answer`, and the tokens of each side."""
        for (turn, is_answer), tokens in groupby(
            self.tokens, lambda one: (one.turn, one.is_answer)
        ):
            yield turn, "answer" if is_answer else "prompt", list(tokens)


@dataclass
class ShownRow:
    """A row in all its forms."""

    picked: PickedRow  # the row and its conversation
    problem: RowProblem | None = None  # why training leaves it out, whoever found it
    pieces: list[ShownPiece] = field(default_factory=list)  # what the template makes of it
    # the examples that it gives; one without tokens to see when it is left out
    parts: list[ShownPart] = field(default_factory=list)

    def said(self) -> Iterator[tuple[str, str]]:
        """Each part of the conversation by its role; judged answers by what they are called."""
        if self.picked.record is None:
            return
        answers = answers_of(self.picked.record)
        (name, conversation), *others = answers
        if conversation.system is not None:
            yield "system", conversation.system
        if conversation.tools is not None:
            yield "tools", conversation.tools
        *asked, last = conversation.messages
        for message in asked:
            yield message.role, message.said + message.content
        yield name or last.role, last.said + last.content
        for name, other in others:
            yield name, other.messages[-1].said + other.messages[-1].content


def show_row(picked: PickedRow, stage: Conversing) -> ShownRow:
    """Encodes a row as training does, and says of each token what becomes of it."""
    shown, encoder = ShownRow(picked, picked.problem), stage.encoder
    if picked.record is None:
        return shown
    (outcome,) = stage.examples([picked.record])
    examples = [Example([], [])]
    if isinstance(outcome, list):
        examples = outcome
    elif isinstance(outcome, RowProblem):
        shown.problem = outcome
    else:
        shown.problem = RowProblem(picked.origin, "", outcome.reason, "")
    tokenizer = encoder.tokenizer
    special = {*tokenizer.all_special_ids}
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    answers = answers_of(picked.record)
    if answers[0][0] and isinstance(outcome, list):
        examples = [part for example in outcome for part in example.each_sequence()]
    for at, (name, conversation) in enumerate(answers):
        try:
            turns = encoder.turns(conversation, judged=bool(name))
        except TemplateError:
            return shown  # the problem says so
        pieces = []
        for number, turn in enumerate(turns, 1):
            for is_answer, side in ((False, turn.prompt), (True, turn.answer)):
                for piece in side:
                    content = piece.content
                    called = getattr(content, "text", None) or getattr(content, "name", content)
                    text = without_marks(content) if isinstance(content, str) else str(called)
                    pieces.append(ShownPiece(piece, text, number, is_answer, name))
        shown.pieces += [one for one in pieces if one.is_answer or at == 0]
        ids = encoder.ids_of([one.piece for one in pieces])
        whole = [
            ShownToken((number,), "", piece.turn, piece.is_answer, is_cut=True)
            for piece, numbers in zip(pieces, ids, strict=True)
            for number in numbers
        ]
        for example in examples[at : at + 1] if name else examples:
            tokens = _align(whole, example)
            num_cut = sum(one.is_cut for one in tokens)
            if len(examples) > 1 and not name:  # what is not in this part is in another
                tokens, num_cut = [one for one in tokens if not one.is_cut], example.num_cut
            tokens = [replace(one, is_special=one.ids[0] in special) for one in tokens]
            tokens = list(_with_text(tokens, tokenizer))
            if at:  # the prompt stands with the first answer
                tokens = [one for one in tokens if one.is_answer]
            num_tokens, num_learned = len(example.input_ids), count_learned(example.labels)
            shown.parts.append(ShownPart(tokens, num_tokens, num_learned, num_cut, name))
    return shown


def answers_of(record: Any) -> list[tuple[str, Conversation]]:
    """The conversations that a record holds; those that are judged with what each is called."""
    if isinstance(record, Pair):
        judged = (("chosen", record.chosen), ("rejected", record.rejected))
        asked = record.prompt.messages
        return [(name, replace(record.prompt, messages=(*asked, one))) for name, one in judged]
    if isinstance(record, Feedback):
        return [("wanted" if record.is_desirable else "unwanted", record.conversation)]
    return [("", record)]


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
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        waiting.append(token)
        ids = [number for one in waiting for number in one.ids]
        # the text of `ids` where they stand; alone, some tokenizers drop a space at the start
        head = str(tokenizer.decode(before)) if before else ""
        both = str(tokenizer.decode(before + ids))
        text = both[len(head) :] if both.startswith(head) else str(tokenizer.decode(ids))
        is_open = text.endswith("\ufffd") and len(waiting) < MOST_JOINED
        if is_open and following and replace(token, ids=()) == replace(following, ids=()):
            continue
        yield replace(waiting[0], ids=tuple(ids), text=text)
        before, waiting = ids[-1:], []


@dataclass(frozen=True)
class Style:
    """How tokens are told apart: by colour, or by brackets where there is none."""

    is_coloured: bool

    def title(self, text: str) -> str:
        """A heading."""
        return f"\x1b[1m{text}\x1b[0m" if self.is_coloured else text

    def side(self, tokens: Sequence[ShownToken]) -> str:
        """The tokens of a prompt or an answer."""
        runs = groupby(tokens, lambda token: (token.is_learned, token.is_cut))
        return self._join([self._run(list(run)) for _, run in runs], self.is_coloured).rstrip("\n")

    def _run(self, tokens: Sequence[ShownToken]) -> str:
        text = self._join(list(map(self._token, tokens)))
        if tokens[0].is_cut:
            opening, closing = f"{CUT_OPEN}{sum(len(one.ids) for one in tokens)} cut: ", CUT_CLOSE
        elif tokens[0].is_learned and not self.is_coloured:
            opening, closing = OPEN, CLOSE
        else:
            return text
        ending = "\n" if text.endswith("\n") else ""
        return f"{opening}{text.removesuffix(ending)}{closing}{ending}"

    def _token(self, token: ShownToken) -> str:
        colours = ["35"] if token.is_special else []
        colours += ["2", "9", "31"] if token.is_cut else ["32"] if token.is_learned else []
        return self._paint(visible(token.text), ";".join(colours))

    def _join(self, texts: Sequence[str], is_spaced: bool = True) -> str:
        between = self._paint(BETWEEN, "2") if is_spaced else ""
        joined = "".join(text if text.endswith("\n") else text + between for text in texts[:-1])
        return joined + texts[-1]

    def _paint(self, text: str, colour: str) -> str:
        if not (self.is_coloured and colour):
            return text
        return "\n".join(
            f"\x1b[{colour}m{line}\x1b[0m" if line else "" for line in text.split("\n")
        )


def visible(text: str) -> str:
    """The text with a sign before each line break, and control characters as escapes."""
    return "".join(
        f"{BREAK}\n"
        if each == "\n"
        else each
        if each.isprintable() or each == "\t"
        else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def legend(style: Style) -> str:
    """What the marks mean."""
    if style.is_coloured:
        return (
            "\x1b[32mlearned\x1b[0m, \x1b[35mspecial token\x1b[0m, "
            f"\x1b[2;9;31mcut off\x1b[0m; {BETWEEN} between tokens, {BREAK} a line break"
        )
    return (
        f"{OPEN}learned{CLOSE}, {CUT_OPEN}cut off{CUT_CLOSE}; {BETWEEN} between tokens, {BREAK} a "
        "line break"
    )


def lines(row: ShownRow, style: Style, cutoff_len: int) -> Iterator[str]:
    """One row in all its forms."""
    yield style.title(f"=== {row.picked.origin} ({row.picked.dataset})")
    yield style.title("row")
    yield from _indented(show_value(row.picked.values, most=MOST_OF_ROW))
    if row.problem is not None:
        yield style.title("left out")
        yield from _indented(str(row.problem))
    if row.picked.record is None:
        yield ""
        return
    yield style.title("conversation")
    for role, content in row.said():
        first, *others = visible(content).split("\n")
        yield f"  {role:<11} {first}"
        yield from (f"  {'':<11} {other}" for other in others)
    yield style.title("pieces")
    for piece in row.pieces:
        text = repr(piece.text) if isinstance(piece.piece.content, str) else piece.text
        shown = f"{OPEN}{text}{CLOSE}" if piece.piece.is_learned else text
        yield f"  {piece.place} {shown}"
    for number, part in enumerate(row.parts, 1):
        several = f"part {number} of {len(row.parts)}: " if len(row.parts) > 1 else ""
        several = f"{part.name}: " if part.name else several
        cut = f"{part.num_cut:,} more are cut off" if part.num_cut else "none is cut off"
        yield style.title(
            f"{several}tokens: {part.num_tokens:,}, {part.num_learned:,} learned; {cut} "
            f"(cutoff_len {cutoff_len:,})"
        )
        for turn, side, tokens in part.sides():
            yield f"  --- turn {turn}, {side}: {sum(len(one.ids) for one in tokens):,} tokens"
            yield from _indented(style.side(tokens))
    yield ""


def _indented(text: str) -> Iterator[str]:
    yield from (f"  {line}" for line in text.split("\n"))


PAGE_STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h2 { border-top: 1px solid #ccc; padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1rem 0 0.2rem; }
pre, .tokens { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0; }
.turn { border-left: 3px solid #bbb; padding-left: 0.6rem; margin: 0.4rem 0; }
.turn.answer { border-color: #2a8a4a; }
.turn small { display: block; color: #777; }
.t { border-right: 1px dotted #bbb; }
.learned { background: #c9f0d3; }
.special { color: #8a2a8a; font-weight: bold; }
.cut { color: #b22; text-decoration: line-through; background: #fde8e8; }
.problem { color: #b22; }
th { text-align: left; vertical-align: top; padding-right: 1rem; font-weight: normal; color: #777; }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1b1b1b; } .learned { background: #1f4a2b; }
  .special { color: #d08ad0; } .cut { color: #f88; background: #4a2020; }
}
"""


def page(rows: Sequence[ShownRow], title: str, cutoff_len: int) -> str:
    """The whole page."""
    body = "\n".join(part for row in rows for part in _row(row, cutoff_len))
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{PAGE_STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n"
        '<p class="tokens"><span class="learned">learned</span> '
        '<span class="special">special token</span> <span class="cut">cut off</span> '
        "(point at a token for its number)</p>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _row(row: ShownRow, cutoff_len: int) -> Iterator[str]:
    yield f"<h2>{_text(row.picked.origin)} ({_text(row.picked.dataset)})</h2>"
    shown = show_value(row.picked.values, most=MOST_OF_ROW)
    yield f"<h3>row</h3><pre>{_text(shown)}</pre>"
    if row.problem is not None:
        yield f'<h3>left out</h3><p class="problem">{_text(str(row.problem))}</p>'
    if row.picked.record is None:
        return
    cells = "".join(
        f"<tr><th>{role}</th><td><pre>{_text(content)}</pre></td></tr>"
        for role, content in row.said()
    )
    yield f"<h3>conversation</h3><table>{cells}</table>"
    pieces = "".join(
        f"<tr><th>{one.place}</th><td><pre><span class="
        f'"{"learned" if one.piece.is_learned else ""}">{_text(one.text)}</span></pre></td></tr>'
        for one in row.pieces
    )
    yield f"<h3>pieces</h3><table>{pieces}</table>"
    for number, part in enumerate(row.parts, 1):
        several = f"part {number} of {len(row.parts)}: " if len(row.parts) > 1 else ""
        several = f"{part.name}: " if part.name else several
        yield (
            f"<h3>{several}{part.num_tokens:,} tokens, {part.num_learned:,} learned, "
            f"{part.num_cut:,} cut off (cutoff_len {cutoff_len:,})</h3>"
        )
        for turn, side, tokens in part.sides():
            yield (
                f'<div class="turn {side}"><small>turn {turn}, {side}</small>'
                f'<div class="tokens">{"".join(map(_token, tokens))}</div></div>'
            )


def _token(token: ShownToken) -> str:
    marks = {"special": token.is_special, "learned": token.is_learned, "cut": token.is_cut}
    classes = " ".join(["t", *(name for name, is_set in marks.items() if is_set)])
    ids = " ".join(map(str, token.ids))
    return f'<span class="{classes}" title="{ids}">{_text(token.text)}</span>'


def _text(text: str) -> str:
    return escape(visible(text).encode("utf-8", "backslashreplace").decode("utf-8"))
