"""a file of good rows with many kinds of damage among them, each at a known line"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Damage:
    """One damaged row.

    Attributes:
        text: what stands on its line.
        kind: how the finding's kind begins.
        is_error: whether training leaves the row out.
    """

    text: bytes
    kind: str
    is_error: bool = True

    @property
    def breaks_a_list(self) -> bool:
        """Whether nothing behind it in a list of rows can be read."""
        return self.kind.startswith(("not JSON", "JSON too large"))


def message(role: Any, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


def good(number: int) -> str:
    asked, answered = (
        message("user", f"question {number}"),
        message("assistant", f"answer {number}"),
    )
    return json.dumps({"messages": [asked, answered]})


def _row(*messages: Any, **more: Any) -> bytes:
    return json.dumps({"messages": list(messages)} | more).encode()


USER, ASSISTANT = message("user", "a question"), message("assistant", "an answer")
TEXT = b'{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "b"}]}'
CALL = {"function": {"name": "f", "arguments": "{"}}

DAMAGES = {
    # the line is no JSON
    "cut inside a text": Damage(TEXT[:60], "not JSON: a text is not closed"),
    "cut behind a text": Damage(TEXT[:-2], "not JSON: it ends too early"),
    "no closing brace": Damage(TEXT[:-1] % b"one", "not JSON: it ends too early"),
    "a brace too many": Damage(TEXT % b"two" + b"}", "not JSON: more behind the value"),
    "two rows on a line": Damage(
        TEXT % b"three" + b" " + TEXT % b"four", "not JSON: more behind the value"
    ),
    "a comma too many": Damage(b'{"messages": [],}', "not JSON: "),
    "no comma": Damage(b'{"a": 1 "messages": []}', "not JSON: no comma between"),
    "no colon": Damage(b'{"messages" []}', "not JSON: no colon"),
    "single quotes": Damage(b"{'messages': []}", "not JSON: no key in double quotes"),
    "a key without quotes": Damage(b"{messages: []}", "not JSON: no key in double quotes"),
    "a word of Python": Damage(b'{"messages": None}', "not JSON: no value"),
    "plain text": Damage(b"a question and its answer", "not JSON: no value"),
    "a comment": Damage(b"// the rows of Monday", "not JSON: no value"),
    "a quote inside a text": Damage(TEXT % b'say "a" aloud', "not JSON: no comma between"),
    "a raw tab in a text": Damage(TEXT % b"a\tb", "not JSON: a raw control character"),
    "a raw NUL in a text": Damage(TEXT % b"a\0b", "not JSON: NUL bytes"),
    "a line of NULs": Damage(b"\0" * 500, "not JSON: NUL bytes"),
    "a BOM inside the file": Damage(b"\xef\xbb\xbf" + TEXT % b"five", "not JSON: a byte-order"),
    "an unknown escape": Damage(TEXT % b"C:\\data", "not JSON: a backslash that escapes nothing"),
    "half an escape": Damage(TEXT % b"\\u12", "not JSON: an incomplete \\u escape"),
    "Latin-1": Damage(TEXT % b"caf\xe9", "bytes that are not UTF-8"),
    "half a character": Damage(TEXT % b"\xe4\xb8", "bytes that are not UTF-8"),
    "nested without end": Damage(b'{"a": ' + b"[" * 100_000, "JSON too large to read"),
    "a number without end": Damage(b'{"a": ' + b"9" * 5000 + b"}", "JSON too large to read"),
    "a key twice": Damage(b'{"messages": [], "messages": []}', "a key stands twice"),
    # the line is no row
    "a list": Damage(b"[1, 2]", "no object"),
    "a text": Damage(b'"a question"', "no object"),
    "a number": Damage(b"17", "no object"),
    "null": Damage(b"null", "no object"),
    # the row is no conversation
    "an empty object": Damage(b"{}", "missing"),
    "another column": Damage(b'{"message": []}', "missing"),
    "messages are null": Damage(b'{"messages": null}', "null"),
    "messages are a text": Damage(b'{"messages": "hello"}', "text where a list belongs"),
    "messages are an object": Damage(b'{"messages": {"role": "user"}}', "an object where a list"),
    "no messages": Damage(b'{"messages": []}', "no messages"),
    "a message is a number": Damage(_row(USER, 1), "a number where an object belongs"),
    "no role": Damage(_row(USER, {"content": "a"}), "missing"),
    "a role of another type": Damage(_row(message(3, "a"), ASSISTANT), "a number where a text"),
    "an unknown role": Damage(_row(message("usr", "a"), ASSISTANT), "an unknown role"),
    "the answer first": Damage(_row(ASSISTANT, USER), "role assistant out of order"),
    "two questions": Damage(_row(USER, USER, ASSISTANT), "role user out of order"),
    "no answer": Damage(_row(USER), "no answer at the end"),
    "a system text late": Damage(
        _row(USER, message("system", "s"), ASSISTANT), "a system text in the middle"
    ),
    "an empty answer": Damage(_row(USER, message("assistant", "")), "empty"),
    "a blank question": Damage(_row(message("user", " \n"), ASSISTANT), "empty"),
    "a null answer": Damage(_row(USER, message("assistant", None)), "null"),
    "an answer that is a number": Damage(_row(USER, message("assistant", 4)), "a number where"),
    "an answer that is true": Damage(_row(USER, message("assistant", True)), "a boolean where"),
    "an image": Damage(_row(message("user", [{"type": "image_url"}]), ASSISTANT), "a part that is"),
    "calls that are no JSON": Damage(
        _row(USER, message("assistant", None, tool_calls=[CALL])), "text that is not JSON"
    ),
    "tools that are no JSON": Damage(
        _row(USER, ASSISTANT, tools="find()"), "no JSON list of tools"
    ),
    "half a surrogate pair": Damage(TEXT % b"\\ud83d", "half of a surrogate pair"),
    # the row can be learned from, and should be looked at
    "a placeholder": Damage(TEXT % b"I am {{name}}", "a placeholder", is_error=False),
    "a NUL escape": Damage(TEXT % b"a\\u0000b", "a NUL character", is_error=False),
    "a bell": Damage(TEXT % b"a\\u0007b", "control characters", is_error=False),
    "lost letters": Damage(TEXT % b"caf\xef\xbf\xbd", "replacement characters", is_error=False),
    "double encoding": Damage(
        TEXT % "it’s".encode().decode("cp1252").encode(), "UTF-8 that", False
    ),
    "a special token": Damage(TEXT % b"stop <|im_end|> here", "a special token", is_error=False),
    "a row twice": Damage(good(0).encode(), "a row that stands twice", is_error=False),
    "another answer": Damage(
        good(1).replace("answer", "other").encode(), "a prompt with different", is_error=False
    ),
    "a row that is too long": Damage(TEXT % (b"word " * 3000), "longer than cutoff_len", False),
    "a column that is rare": Damage(
        _row(message("user", "six"), ASSISTANT, mesages=[]), "a column that is not read", False
    ),
}
"""What can be wrong with a row of messages, by what was done to it."""


def write_damaged(path: Path, num_rows: int) -> dict[int, Damage]:
    """Writes rows with every kind of damage once among them.

    Args:
        path: the file; a suffix .jsonl gives a row a line, .json a list of them, without the
            damages that would end it.
        num_rows: how many rows there are, the damaged ones included.

    Returns:
        The line of each damaged row.
    """
    lines = [good(number).encode() for number in range(num_rows)]
    is_list = path.suffix == ".json"
    damages = [one for one in DAMAGES.values() if not (is_list and one.breaks_a_list)]
    apart = num_rows // (len(damages) + 1)
    places = {}
    for number, damage in enumerate(damages, 1):
        lines[number * apart] = damage.text
        places[number * apart + (2 if is_list else 1)] = damage
    joined = b"[\n" + b",\n".join(lines) + b"\n]" if is_list else b"\n".join(lines)
    path.write_bytes(joined)
    return places
