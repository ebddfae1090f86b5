"""rows of judged answers: a chosen and a rejected one, or one that is marked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.data.catalog import FORMATS, Columns, DatasetDescription, Reading
from luthier.data.check import RowError
from luthier.data.formats.detect import MESSAGES, find_alpaca, find_columns, find_messages
from luthier.data.formats.fields import as_list, kind_of
from luthier.errors import DataError
from luthier.records import Conversation, Feedback, Origin, Pair

PROMPTS = (*MESSAGES, "prompt")
"""Columns that hold what the answers answer, where these are messages."""

MARKS = ("kto_tag", "label")
"""Columns of a mark, wanted or not."""


def detect_pairs(
    description: DatasetDescription, rows: Sequence[Any]
) -> tuple[DatasetDescription, str]:
    """The description of pairs that the first rows tell, and the line that says it.

    Raises:
        DataError: if they hold no pairs.
    """
    objects, keys = find_columns(rows)
    if not {"chosen", "rejected"} <= {*keys}:
        listed = ", ".join(keys[:12]) or "no objects at all"
        raise DataError(
            f"data set {description.name!r}: its rows hold no pairs; expected are the columns "
            f"chosen and rejected beside a prompt. Columns here: {listed}. Name them in "
            'dataset_info.json ("ranking": true and "columns"), or use stage: sft for rows of one '
            "answer, kto for marked ones."
        )
    if any(isinstance(row.get("chosen"), str) for row in objects):
        found = find_alpaca([*keys, "output"])
    else:
        found = _find_messages(objects, ("chosen", "rejected"))
    if found is None:
        raise DataError(
            f"data set {description.name!r}: its rows have a chosen and a rejected answer and no "
            f"question that is known. Columns here: {', '.join(keys[:12])}. Call it prompt, or "
            'name it in "columns" of dataset_info.json, with "ranking": true.'
        )
    formatting, columns, tags, told = found
    told = {part: name for part, name in told.items() if part != "response"}
    extra = {name: name for name in ("system", "tools", "margin", "chosen", "rejected")}
    extra = {name: name for name in extra if name in keys}
    columns = replace(columns, response=None, **extra)
    shown = ", ".join(f"{part} from {column!r}" for part, column in (told | extra).items())
    detected = replace(description, formatting=formatting, columns=columns, tags=tags, ranking=True)
    return detected, f"{formatting} pairs detected: {shown}"


def detect_marked(
    description: DatasetDescription, rows: Sequence[Any]
) -> tuple[DatasetDescription, str]:
    """The description of marked answers, or of pairs, and the line that says it.

    Raises:
        DataError: if rows hold neither.
    """
    objects, keys = find_columns(rows)
    if {"chosen", "rejected"} <= {*keys}:
        detected, line = detect_pairs(description, rows)
        return detected, f"{line}; each gives a wanted and an unwanted answer"
    mark = next((name for name in MARKS if name in keys), None)
    found = None
    if any(isinstance(row.get("completion"), list) for row in objects):
        found = _find_messages(objects, ("completion",))
    found = found or find_messages(objects, keys) or find_alpaca(keys)
    if mark is None or found is None:
        listed = ", ".join(keys[:12]) or "no objects at all"
        raise DataError(
            f"data set {description.name!r}: its rows hold no marked answers; expected is a column "
            f"{' or '.join(MARKS)}, true or false, beside a prompt and an answer. Columns here: "
            f'{listed}. Name it as "kto_tag" in "columns" of dataset_info.json.'
        )
    formatting, columns, tags, told = found
    extra = {name: name for name in ("system", "tools") if name in keys}
    columns = replace(columns, kto_tag=mark, **extra)
    shown = ", ".join(f"{p} from {c!r}" for p, c in (told | extra | {"mark": mark}).items())
    detected = replace(description, formatting=formatting, columns=columns, tags=tags)
    return detected, f"{formatting} rows of marked answers detected: {shown}"


def _find_messages(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Any:
    """Formatting and tags of messages that stand in several columns of a row."""
    together = []
    for row in rows:
        parts = [row.get(name) for name in (*PROMPTS, *answers)]
        listed = [part if isinstance(part, list) else [part] for part in parts]
        together.append({"messages": [one for part in listed for one in part]})
    found = find_messages(together, ["messages"])
    if found is None:
        return None
    formatting, _, tags, told = found
    prompt = next((name for name in PROMPTS if any(row.get(name) for row in rows)), None)
    columns = Columns(messages=prompt, chosen=None if len(answers) == 2 else answers[0])
    told = {part: name for part, name in told.items() if part != "messages"}
    return formatting, columns, tags, {"prompt": prompt or answers[0]} | told


def read_pair(row: Mapping[str, Any], reading: Reading, origin: Origin | None) -> Pair:
    """The prompt, and an answer from each of the two columns.

    Answers are texts beside an alpaca question; a message, or a list with one, behind the messages
    of a prompt (TRL's explicit form; a prompt that is a text is the user's question); or whole
    conversations, of which the common turns are the prompt (its implicit form).

    Raises:
        RowError: as those of conversations; and if the answers are equal, or answer different
            prompts.
    """
    columns = reading.description.columns
    names = (columns.chosen or "chosen", columns.rejected or "rejected")
    unremarked = replace(reading, remarks=Counter())
    chosen = _read_answer(row, names[0], reading, origin)
    rejected = _read_answer(row, names[1], unremarked, origin)
    if chosen == rejected:
        raise RowError(names[1], f"the same as {names[0]}", "Let the answers differ.")
    *asked, better = chosen.messages
    *other, worse = rejected.messages
    if asked != other or (chosen.system, chosen.tools) != (rejected.system, rejected.tools):
        raise RowError(names[1], *_different_prompts(chosen, rejected, names[0]))
    if not asked:
        raise RowError(names[0], "no prompt", "Let a question stand before both answers.")
    margin = None
    if columns.margin is not None and row.get(columns.margin) is not None:
        margin = row[columns.margin]
        is_number = isinstance(margin, int | float) and not isinstance(margin, bool)
        if not is_number or not math.isfinite(margin):
            fix = "Write by how much the chosen answer is better, or null."
            raise RowError(columns.margin, f"{kind_of(margin)} where a number belongs", fix)
        margin = float(margin)
    return Pair(replace(chosen, messages=tuple(asked)), better, worse, origin, margin)


def read_marked(row: Mapping[str, Any], reading: Reading, origin: Origin | None) -> Feedback | Pair:
    """An answer with its mark; a pair where the data set has pairs.

    Raises:
        RowError: as those of conversations; and if the mark is neither true nor false.
    """
    description = reading.description
    if description.ranking:
        return read_pair(row, reading, origin)
    mark = description.columns.kto_tag
    assert mark is not None
    if not isinstance(row.get(mark), bool):
        there = kind_of(row[mark]) if row.get(mark) is not None else "null"
        reason = f"{there} where true or false belongs" if mark in row else "missing"
        raise RowError(mark, reason, "Write true for an answer that is wanted, false for others.")
    answer = description.columns.chosen
    if answer is not None:
        conversation = _read_answer(row, answer, reading, origin)
    else:
        conversation = _weighed(
            FORMATS.get(description.formatting or "alpaca")(row, reading, origin)
        )
    return Feedback(conversation, row[mark], origin)


def _read_answer(
    row: Mapping[str, Any], name: str, reading: Reading, origin: Origin | None
) -> Conversation:
    """The conversation that ends in the answer of that column."""
    description = reading.description
    formatting = description.formatting or "alpaca"
    columns, tags = description.columns, description.tags
    read = FORMATS.get(formatting)
    if row.get(name) is None:
        raise RowError(
            name,
            "null" if name in row else "missing",
            f'Write the answer there, or name its column in "columns" of {description.name!r}.',
            f" (there are: {', '.join(map(repr, list(row)[:8]))})",
        )
    if formatting == "alpaca":
        described = replace(description, columns=replace(columns, response=name))
        return _weighed(read(row, replace(reading, description=described), origin))
    answers = row[name] if isinstance(row[name], list) else [row[name]]
    prompt: Any = row.get(columns.messages) if columns.messages else None
    if isinstance(prompt, str) and not prompt.lstrip().startswith("["):
        prompt = [{tags.role_tag: tags.user_tag, tags.content_tag: prompt}]
    prompt = [] if prompt is None else as_list(prompt, columns.messages or "")
    first = answers[0] if answers and isinstance(answers[0], Mapping) else {}
    speaks_first = first.get(tags.role_tag) not in (tags.assistant_tag, tags.function_tag, None)
    if speaks_first and len(answers) > 1:  # a whole conversation
        prompt = []
    column = columns.messages or name
    described = replace(description, columns=replace(columns, messages=column))
    given = {**row, column: [*prompt, *answers]}
    try:
        return _weighed(read(given, replace(reading, description=described), origin))
    except RowError as error:
        start, end = f"{column}[", error.field.find("]")
        if not error.field.startswith(start):
            raise
        number = int(error.field[len(start) : end]) - len(prompt)
        if number < 0:
            raise
        where = f"{name}[{number}]" if isinstance(row[name], list) else name
        raise RowError(
            where + error.field[end + 1 :], error.reason, error.fix, error.found
        ) from error


def _weighed(conversation: Conversation) -> Conversation:
    """The same, if it and its answer count once or not at all."""
    weights = (conversation.weight, conversation.messages[-1].weight)
    if any(weight not in (None, 0, 1) for weight in weights):
        fix = "Answers that are compared count once; write 1, or 0 to leave the row out."
        raise RowError("", f"a weight of {max(w for w in weights if w is not None):g}", fix)
    if 0 in weights:
        return replace(conversation, weight=0.0)
    return replace(conversation, weight=None)


def _different_prompts(chosen: Conversation, rejected: Conversation, name: str) -> tuple[str, str]:
    """What is said of two conversations that do not part at their last answer."""
    fix = (
        "Both must answer the same prompt: the same system text, tools and turns, one answer each."
    )
    ours, theirs = chosen.messages, rejected.messages
    num_common = next(
        (at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
        min(len(ours), len(theirs)),
    )
    if chosen.tools != rejected.tools or chosen.system != rejected.system:
        return f"other tools or another system text than {name}", fix
    if num_common == 0:
        return f"nothing in common with {name}", fix
    if num_common == min(len(ours), len(theirs)):
        return f"one of it and {name} is the beginning of the other", fix
    return f"it differs from {name} in more than the last answer", fix
