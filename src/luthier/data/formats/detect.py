"""the first rows of a file -> its formatting, columns and tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.data.catalog import OPENAI_TAGS, Columns, DatasetDescription, Tags
from luthier.data.formats.text import for_texts
from luthier.errors import DataError

NUM_LOOKED_AT = 20
"""How many rows decide."""

_QUESTIONS = ("instruction", "prompt", "question", "query", "input")
_ANSWERS = ("output", "response", "answer", "completion", "target")
MESSAGES = ("messages", "conversations", "conversation", "dialogue")


def detect_format(
    description: DatasetDescription, rows: Sequence[Any], *, needs_answer: bool = True
) -> tuple[DatasetDescription, str]:
    """The description with what the first rows tell, and the line that says so.

    Rows that are only asked may have no answer.

    Raises:
        DataError: if they are like no formatting.
    """
    objects, keys = find_columns(rows)
    if "chosen" in keys and "rejected" in keys:
        raise DataError(
            f"data set {description.name!r}: its rows hold a chosen and a rejected answer; stage "
            "sft learns from one answer. Use a data set of conversations, or stage: dpo or rm."
        )
    for name in ("label", "kto_tag"):
        if any(isinstance(row.get(name), bool) for row in objects):
            raise DataError(
                f"data set {description.name!r}: {name!r} is true or false, as stage kto tells "
                "wanted from unwanted answers; stage sft would learn both. Use stage: kto, or "
                "leave out the rows where it is false, and the column. If "
                f"{name!r} means something else, describe the data set in dataset_info.json with "
                '"formatting" and "columns".'
            )
    found = find_messages(objects, keys) or find_alpaca(keys, needs_answer=needs_answer)
    if found is None:
        listed = ", ".join(keys[:12]) or "no objects at all"
        raise DataError(
            f"data set {description.name!r}: its rows are like no known formatting. Columns here: "
            f"{listed}. Rename them (instruction, output), or describe the data set in "
            f'dataset_info.json with "formatting" and "columns".{for_texts(keys)}'
        )
    formatting, columns, tags, told = found
    columns = replace(
        columns,
        system="system" if "system" in keys else None,
        tools="tools" if "tools" in keys else None,
    )
    detected = replace(description, formatting=formatting, columns=columns, tags=tags)
    told |= {name: name for name in ("system", "tools") if name in keys}
    shown = ", ".join(f"{part} from {column!r}" for part, column in told.items())
    return detected, f"{formatting} rows detected: {shown}"


def find_columns(rows: Sequence[Any]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The rows that are objects, and the names of their columns in order."""
    objects = [row for row in rows if isinstance(row, Mapping)]
    return objects, list(dict.fromkeys(str(key) for row in objects for key in row))


def find_messages(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> tuple[str, Columns, Tags, dict[str, str]] | None:
    """Formatting, columns and tags of messages, and what was taken from where; None without."""
    for column in MESSAGES:
        messages = [
            message
            for row in rows
            if isinstance(row.get(column), list)
            for message in row[column]
            if isinstance(message, Mapping)
        ]
        if column not in keys or not messages:
            continue
        told = {"messages": column}
        if any("role" in message for message in messages):
            return "openai", Columns(messages=column), OPENAI_TAGS, told
        if any("from" in message for message in messages):
            roles = {str(message.get("from")) for message in messages}
            tags = Tags(
                user_tag="user" if "user" in roles and "human" not in roles else "human",
                assistant_tag="assistant" if "assistant" in roles and "gpt" not in roles else "gpt",
                observation_tag="tool" if "tool" in roles else "observation",
            )
            told |= {"questions": tags.user_tag, "answers": tags.assistant_tag}
            return "sharegpt", Columns(messages=column), tags, told
    return None


def find_alpaca(
    keys: Sequence[str], *, needs_answer: bool = True
) -> tuple[str, Columns, Tags, dict[str, str]] | None:
    """The same of rows with a question and an answer, or a question alone."""
    prompt = next((name for name in _QUESTIONS if name in keys), None)
    response = next((name for name in _ANSWERS if name in keys), None)
    if prompt is None or (response is None and needs_answer):
        return None
    query = next((name for name in ("input", "query") if name in keys and name != prompt), None)
    history = "history" if "history" in keys else None
    told = {"prompt": prompt, "query": query, "response": response, "history": history}
    columns = Columns(prompt=prompt, query=query, response=response, history=history)
    return "alpaca", columns, Tags(), {name: value for name, value in told.items() if value}
