"""a shown row as text: coloured on a terminal, with brackets in a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from luthier.data.check import show_value
from luthier.inspecting.view.shown import ShownPart, ShownRow, ShownToken

MOST_OF_ROW = 2000
"""Characters of a row's own text that are shown."""

OPEN, CLOSE = "⟦", "⟧"
CUT_OPEN, CUT_CLOSE = "✂{", "}"
BETWEEN = "·"
BREAK = "↵"


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
        """Tokens of one kind, in brackets where colours do not show it."""
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
    conversation = row.picked.conversation
    if conversation is None:
        yield ""
        return
    yield style.title("conversation")
    said = [("system", conversation.system), ("tools", conversation.tools)]
    said += [(message.role, message.said + message.content) for message in conversation.messages]
    for role, content in said:
        if content is not None:
            first, *others = visible(content).split("\n")
            yield f"  {role:<11} {first}"
            yield from (f"  {'':<11} {other}" for other in others)
    yield style.title("pieces")
    for piece in row.pieces:
        side = "answer" if piece.is_answer else "prompt"
        text = repr(piece.text) if isinstance(piece.piece.content, str) else piece.text
        shown = f"{OPEN}{text}{CLOSE}" if piece.piece.is_learned else text
        yield f"  {piece.turn} {side} {shown}"
    for number, part in enumerate(row.parts, 1):
        several = f"part {number} of {len(row.parts)}: " if len(row.parts) > 1 else ""
        cut = f"{part.num_cut:,} more are cut off" if part.num_cut else "none is cut off"
        yield style.title(
            f"{several}tokens: {part.num_tokens:,}, {part.num_learned:,} learned; {cut} "
            f"(cutoff_len {cutoff_len:,})"
        )
        yield from _sides(part, style)
    yield ""


def _sides(part: ShownPart, style: Style) -> Iterator[str]:
    """The tokens of a part, the prompts and the answers of its turns told apart."""
    sides = groupby(part.tokens, lambda token: (token.turn, token.is_answer))
    for (turn, is_answer), side_tokens in sides:
        tokens = list(side_tokens)
        side = "answer" if is_answer else "prompt"
        count = sum(len(token.ids) for token in tokens)
        yield f"  --- turn {turn}, {side}: {count:,} tokens"
        yield from _indented(style.side(tokens))


def _indented(text: str) -> Iterator[str]:
    yield from (f"  {line}" for line in text.split("\n"))
