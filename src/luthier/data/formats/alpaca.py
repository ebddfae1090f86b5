"""instruction, input, output, history: one question and its answer a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.catalog import FORMATS, Reading
from luthier.data.check import RowError
from luthier.data.formats.fields import (
    as_list,
    as_text,
    optional_text,
    text_at,
    tools_of,
    weight_of_row,
)
from luthier.data.formats.text import for_texts
from luthier.records import Conversation, Message, Origin


@FORMATS.register("alpaca")
def read_alpaca(row: Mapping[str, Any], reading: Reading, origin: Origin | None) -> Conversation:
    """The row's history, then its question (prompt and query, a line each) and its answer."""
    columns = reading.description.columns
    asked = [optional_text(row, columns.prompt), optional_text(row, columns.query)]
    question = "\n".join(part for part in asked if part)
    if not question or question.isspace():
        field = columns.prompt or columns.query or "prompt"
        reason = "empty" if field in row else "missing"
        raise RowError(
            field,
            reason,
            f'Write the question there, or name its column as "prompt" in "columns" of '
            f"{reading.description.name!r}.{for_texts(row)}",
            f" (there are: {', '.join(map(repr, list(row)[:8]))})",
        )
    messages = [*_history(row, columns.history), Message("user", question)]
    response = columns.response or "output"
    if reading.needs_answer:
        part = next((n for n in ("chosen", "rejected") if n == response), "response")
        fix = (
            f'Write the answer there, or name its column as "{part}" in "columns" of '
            f"{reading.description.name!r}."
        )
        answer = text_at(row, response, response, fix)
    else:
        answer = optional_text(row, columns.response)
    messages.append(Message("assistant", answer))
    return Conversation(
        tuple(messages),
        system=optional_text(row, columns.system) or None,
        tools=tools_of(row, reading.description),
        origin=origin,
        weight=weight_of_row(row, reading),
    )


def _history(row: Mapping[str, Any], column: str | None) -> list[Message]:
    if column is None or row.get(column) is None or row[column] == "":
        return []
    messages = []
    for number, pair in enumerate(as_list(row[column], column)):
        field = f"{column}[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(field, "no pair", 'Write each earlier turn as ["question", "answer"].')
        messages.append(Message("user", as_text(pair[0], field)))
        messages.append(Message("assistant", as_text(pair[1], field)))
    return messages
