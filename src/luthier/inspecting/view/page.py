"""shown rows as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from luthier.data.check import show_value
from luthier.inspecting.view.shown import ShownPart, ShownRow, ShownToken
from luthier.inspecting.view.terminal import MOST_OF_ROW, visible

STYLE = """
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
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
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
    conversation = row.picked.conversation
    if conversation is None:
        return
    said = [("system", conversation.system), ("tools", conversation.tools)]
    said += [(message.role, message.said + message.content) for message in conversation.messages]
    cells = "".join(
        f"<tr><th>{role}</th><td><pre>{_text(content)}</pre></td></tr>"
        for role, content in said
        if content is not None
    )
    yield f"<h3>conversation</h3><table>{cells}</table>"
    pieces = "".join(
        f"<tr><th>{one.turn} {'answer' if one.is_answer else 'prompt'}</th><td><pre><span class="
        f'"{"learned" if one.piece.is_learned else ""}">{_text(one.text)}</span></pre></td></tr>'
        for one in row.pieces
    )
    yield f"<h3>pieces</h3><table>{pieces}</table>"
    for number, part in enumerate(row.parts, 1):
        several = f"part {number} of {len(row.parts)}: " if len(row.parts) > 1 else ""
        yield (
            f"<h3>{several}{part.num_tokens:,} tokens, {part.num_learned:,} learned, "
            f"{part.num_cut:,} cut off (cutoff_len {cutoff_len:,})</h3>"
        )
        yield from _sides(part)


def _sides(part: ShownPart) -> Iterator[str]:
    sides = groupby(part.tokens, lambda one: (one.turn, one.is_answer))
    for (turn, is_answer), tokens in sides:
        side = "answer" if is_answer else "prompt"
        spans = "".join(map(_token, tokens))
        yield (
            f'<div class="turn {side}"><small>turn {turn}, {side}</small>'
            f'<div class="tokens">{spans}</div></div>'
        )


def _token(token: ShownToken) -> str:
    marks = {
        "special": token.is_special,
        "learned": token.is_learned,
        "cut": token.is_cut,
    }
    classes = " ".join(["t", *(name for name, is_set in marks.items() if is_set)])
    ids = " ".join(map(str, token.ids))
    return f'<span class="{classes}" title="{ids}">{_text(token.text)}</span>'


def _text(text: str) -> str:
    return escape(visible(text).encode("utf-8", "backslashreplace").decode("utf-8"))
