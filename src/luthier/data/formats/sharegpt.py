"""conversations of tagged messages, questions and answers in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.catalog import Tags
from luthier.data.check import RowError
from luthier.data.formats.fields import (
    as_list,
    as_object,
    as_text,
    check_order,
    optional_text,
    text_at,
    tools_of,
    weight_of_message,
    weight_of_row,
)
from luthier.data.formats.registry import FORMATS, Reading
from luthier.errors import suggest
from luthier.records import Conversation, Message, Origin, Role


@FORMATS.register("sharegpt")
def read_sharegpt(row: Mapping[str, Any], reading: Reading, origin: Origin | None) -> Conversation:
    """The messages as they stand; a first one with the system tag wins over the system column.

    Raises:
        RowError: if roles are unknown or out of order, or a text is missing or empty.
    """
    description = reading.description
    tags, column = description.tags, description.columns.messages or "conversations"
    given = messages_of(row, column, description.name)
    system = optional_text(row, description.columns.system)
    if given and tags.system_tag and given[0].get(tags.role_tag) == tags.system_tag:
        system = optional_text(given[0], tags.content_tag)
        given = given[1:]
    roles = role_names(tags)
    messages = []
    for number, message in enumerate(given):
        role = role_at(message, f"{column}[{number}]", tags, roles)
        field = f"{column}[{number}].{tags.content_tag}"
        if role == "observation":
            content = as_text(message.get(tags.content_tag), field)
        else:
            content = text_at(message, tags.content_tag, field, "Write what was said.")
        weight = weight_of_message(message, f"{column}[{number}]")
        messages.append(Message(role, content, weight))
    shown = (
        f"{tags.user_tag} or {tags.observation_tag}, {tags.assistant_tag} or {tags.function_tag}"
    )
    ordered = check_order(messages, column, needs_answer=reading.needs_answer, tags=shown)
    tools = tools_of(row, description)
    weight = weight_of_row(row, reading)
    return Conversation(tuple(ordered), system or None, tools, origin, weight)


def messages_of(row: Mapping[str, Any], column: str, name: str) -> list[Mapping[str, Any]]:
    """The row's list of messages.

    Raises:
        RowError: if it is missing, no list, or holds something else than objects.
    """
    if row.get(column) is None:
        raise RowError(
            column,
            "null" if column in row else "missing",
            'Write the messages there, or name their column as "messages" in "columns" of '
            f"{name!r}.",
            f" (there are: {', '.join(map(repr, list(row)[:8]))})",
        )
    return [
        as_object(message, f"{column}[{number}]")
        for number, message in enumerate(as_list(row[column], column))
    ]


def role_names(tags: Tags) -> dict[str, Role]:
    """A data set's names of roles -> ours."""
    return {
        tags.user_tag: "user",
        tags.assistant_tag: "assistant",
        tags.observation_tag: "observation",
        tags.function_tag: "function",
    }


def role_at(message: Mapping[str, Any], field: str, tags: Tags, roles: Mapping[str, Role]) -> Role:
    """Who speaks.

    Raises:
        RowError: if the tag is missing, unknown, or names the system in the middle.
    """
    said = text_at(message, tags.role_tag, f"{field}.{tags.role_tag}", "Say who speaks.")
    if said in roles:
        return roles[said]
    if said == tags.system_tag:
        raise RowError(field, "a system text in the middle", "It may only come first.")
    raise RowError(
        f"{field}.{tags.role_tag}",
        "an unknown role",
        f'Name it in "tags" of the data set.{suggest(said, roles)}',
        f" ({said[:40]!r})",
    )
